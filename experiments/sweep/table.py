"""What the runs of a sweep measured: joined over seeds, written, printed, drawn."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.common.figures import COLUMN, canvas, legend, look
from experiments.common.selection import Selection
from experiments.results import config_hash, interval
from experiments.sweep.plan import FILE, describe, short
from rml.errors import unknown
from rml.ops.intervals import t_interval
from rml.training import read_metrics
from rml.training.config_file import read_config, read_summary
from rml.training.durable import write_json

LOG_RATIO = 3.0
"""Least ratio of two values whose axis is logarithmic."""


class Judge(NamedTuple):
    """The metric that a sweep is read by.

    Attributes:
      metric: Its name.
      mode: "max" or "min".
      why_not: Why no best is named by it, empty if one is.
      known: What is known of it, for the line that names the best.
    """

    metric: str
    mode: str
    why_not: str
    known: str = ""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.mode == "max" else -1


def choose_judge(best: str, recipe: Any, configs: Sequence[ConfigDict]) -> Judge:
    """The metric that is asked for, or else the recipe's, or else one that only shows.

    Args:
      best: `--best`: a metric, with `:min` behind it where less is better; may be empty.
      recipe: Module of the experiment.
      configs: The config of every combination, none of which may choose on its test or training
        data.

    Returns:
      The metric; without a name where the recipe names none.

    Raises:
      UserError: A split of a config cannot be read.
    """
    selection: Selection | None = getattr(recipe, "SELECTION", None)
    test = next(filter(None, map(selection.why_not, configs)), "") if selection else ""
    if best:
        metric, _, mode = best.partition(":")
        known = "as --best asks"
        if selection and test and metric == selection.metric:
            known += f"; {test}: what is chosen by it cannot be reported on it"
        return Judge(metric, mode or "max", "", known)
    if selection:
        return Judge(selection.metric, selection.mode, test, "the recipe's validation metric")
    claimed = next((claim.metric for claim in recipe.CLAIMS), "")
    return Judge(claimed, "max", f"{configs[0].experiment} has no validation metric")


def measured(directory: Path) -> dict[str, float]:
    """Metrics of a complete run, and the last of each that it logged; none of another run."""
    summary = read_summary(directory)
    if summary is None:
        return {}
    logged: dict[str, float] = {}
    for line in read_metrics(directory / "metrics.jsonl"):
        logged |= {name: float(line[name]) for name in line if "/" in name}
    return logged | summary["metrics"]


def join(row: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """A combination with the metrics of its complete runs: values by seed, mean and interval.

    A directory that holds a run of another config counts as one without a run.
    """
    directories = {seed: workdir / row["folder"] / f"seed{seed}" for seed in range(row["seeds"])}
    runs = {
        seed: found
        for seed, directory in directories.items()
        if (found := measured(directory))
        and config_hash(read_config(directory) or {}) == row["config_hash"]
    }
    metrics = {}
    for name in dict.fromkeys(name for found in runs.values() for name in found):
        values = [found.get(name, math.nan) for found in runs.values()]
        ends = t_interval(np.array(values))
        metrics[name] = {
            "values": [_finite(value) for value in values],
            "mean": _finite(ends.mean), "low": _finite(ends.low), "high": _finite(ends.high),
        }  # fmt: skip
    return dict(row) | {"complete": list(runs), "metrics": metrics}


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def write(sweep: Mapping[str, Any], workdir: Path, judge: Judge) -> tuple[dict[str, Any], Judge]:
    """Joins what is complete and writes `sweep.json`.

    Args:
      sweep: See `plan.open_sweep`.
      workdir: Its directory.
      judge: The metric that it is read by.

    Returns:
      What was written, and the metric: the first that runs have where the recipe names none.
    """
    rows = [join(row, workdir) for row in sweep["combinations"]]
    if not judge.metric:
        names = (name for row in rows for name in row["metrics"])
        judge = judge._replace(metric=next(names, ""))
    joined = dict(sweep) | {"combinations": rows, "metric": judge.metric, "mode": judge.mode}
    best = None if judge.why_not else find_best(rows, judge)
    joined["best"] = best and best["folder"]
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / FILE, joined)
    return joined, judge


def check_measured(rows: Sequence[Mapping[str, Any]], judge: Judge) -> None:
    """Raises `UserError` where combinations have metrics, and none the one that is read."""
    names = {name for row in rows for name in row["metrics"]}
    if names and judge.metric and judge.metric not in names:
        raise unknown("metric", judge.metric, names)


def key_metric(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """A metric of a combination; all of it None where no run has it."""
    return row["metrics"].get(metric) or dict.fromkeys(("mean", "low", "high"))


def find_best(rows: Sequence[Mapping[str, Any]], judge: Judge) -> Any:
    """The combination of the best mean, among those whose seeds are all complete and finite."""
    whole = [
        row
        for row in rows
        if len(row["complete"]) == row["seeds"]
        and key_metric(row, judge.metric)["mean"] is not None
    ]

    def goodness(row: Mapping[str, Any]) -> float:
        return judge.sign * row["metrics"][judge.metric]["mean"]

    return max(whole, key=goodness, default=None)


def conclude(sweep: Mapping[str, Any], workdir: Path, judge: Judge, console: Console) -> None:
    """Prints the table and the best, and writes them and the figure.

    Args:
      sweep: See `plan.open_sweep`.
      workdir: Its directory.
      judge: The metric that it is read by.
      console: Where it is printed.

    Raises:
      UserError: No run has the metric.
    """
    joined, judge = write(sweep, workdir, judge)
    rows = [row for row in joined["combinations"] if row["metrics"]]
    if not rows:
        console.print("no run is complete")
        return
    check_measured(rows, judge)
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    write_csv(workdir / "sweep.csv", joined, list(names))
    header, *body = cells(joined, judge.metric)
    lines = [header, ["---"] * len(header), *body]
    (workdir / "sweep.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    table = Table(title=f"{joined['config']}: mean and 95% interval", title_justify="left")
    for name in header:
        table.add_column(name, justify="right")
    for line in body:
        table.add_row(*line)
    console.print(table)
    draw(workdir / "sweep.png", joined, judge.metric)
    if judge.why_not:
        console.print(f"no best is named: {judge.why_not}; {_advice(judge)}")
    elif (best := find_best(joined["combinations"], judge)) is None:
        console.print("no best is named: no combination has a finite mean of all of its seeds")
    else:
        found = key_metric(best, judge.metric)
        value = interval(found["mean"], found["low"], found["high"])
        console.print(
            f"best by {judge.metric} ({judge.known}): {describe(best['values'])}: {value}"
            + _not_apart(best, joined["combinations"], judge.metric)
        )
    console.print(f"table and figure in {workdir}: sweep.json, sweep.csv, sweep.md, sweep.png")


def _advice(judge: Judge) -> str:
    held_out = "hold a part of the training data out, as --config.data.train='train[:80%]' "
    held_out += "--config.data.test='train[80%:]', or "
    return held_out * ("measured on" in judge.why_not) + "give --best=METRIC"


def _not_apart(best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """How many other combinations have an interval that meets the best one's."""
    ends = [key_metric(row, metric) for row in rows if row is not best]
    own = key_metric(best, metric)
    if own["low"] is None:
        return "; one seed has no interval"
    known = [end for end in ends if end["low"] is not None]
    meeting = sum(own["low"] <= end["high"] and end["low"] <= own["high"] for end in known)
    return f"; its interval meets those of {meeting} of {len(known)} others" if meeting else ""


def cells(joined: Mapping[str, Any], metric: str) -> Iterator[list[str]]:
    """The table's header and rows as text."""
    keys = joined["grid"]
    yield [*_names(keys), metric, "seeds"]
    for row in joined["combinations"]:
        found = key_metric(row, metric)
        done, seeds = len(row["complete"]), row["seeds"]
        value = interval(found["mean"], found["low"], found["high"]) if done else "–"
        count = str(done) if done == seeds else f"{done} of {seeds}"
        best = row["folder"] == joined["best"]
        yield [*(str(row["values"][key]) for key in keys), value + " (best)" * best, count]


def _names(keys: Sequence[str]) -> list[str]:
    shorts = [short(key) for key in keys]
    return [
        name if shorts.count(name) == 1 else key for key, name in zip(keys, shorts, strict=True)
    ]


def write_csv(path: Path, joined: Mapping[str, Any], names: Sequence[str]) -> None:
    """Writes one line a combination: its values, seeds, and each metric's mean and interval."""
    parts = ("mean", "low", "high")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*joined["grid"], "seeds", *(f"{n} {p}" for n in names for p in parts)])
        for row in joined["combinations"]:
            values = [row["values"][key] for key in joined["grid"]]
            ends = [key_metric(row, name)[part] for name in names for part in parts]
            writer.writerow([*values, len(row["complete"]), *ends])


def draw(path: Path, joined: Mapping[str, Any], metric: str) -> None:
    """Draws a metric's mean and interval against the first key of the grid.

    The other keys' values make a line each. Values with a common ratio stand on a logarithmic axis,
    those that are no numbers in the grid's order.
    """
    first, *others = joined["grid"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in joined["combinations"]:
        if key_metric(row, metric)["mean"] is not None:
            lines.setdefault(describe({k: row["values"][k] for k in others}), []).append(row)
    shown = [row["values"][first] for rows in lines.values() for row in rows]
    values = {str(value): value for value in shown}
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in shown)
    places = values if numeric else {name: place for place, name in enumerate(values)}
    log = numeric and log_spaced(shown)
    unconnected = {} if numeric else {"linestyle": "none"}
    with canvas(path, (COLUMN, 0.68 * COLUMN)) as figure:
        ax = figure.add_subplot()
        for index, (name, rows) in enumerate(lines.items()):
            points = sorted(
                (places[str(row["values"][first])], *_ends(key_metric(row, metric))) for row in rows
            )
            x, mean, low, high = np.array(points, float).T
            ax.errorbar(
                _shifted(x, places.values(), index - (len(lines) - 1) / 2, log), mean,
                yerr=[mean - low, high - mean], label=name or metric, capsize=2, elinewidth=0.9,
                markeredgecolor="white", markeredgewidth=0.4,
                **look(index, "color", "linestyle", "marker") | unconnected,
            )  # fmt: skip
        ax.set(xlabel=first, ylabel=metric, xscale="log" if log else "linear")
        if len(places) <= 8:
            ax.set_xticks(list(places.values()), list(values))
            ax.set_xticks([], minor=True)
        ax.grid(visible=True)
        ax.margins(x=0.08)
        legend(ax, len(lines), above=len(lines) > 2)


def _ends(found: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(math.nan if found[k] is None else found[k] for k in ("mean", "low", "high"))


def _shifted(x: np.ndarray, places: Any, by: float, log: bool) -> np.ndarray:
    """Moves a line's points a little, so that intervals of several lines stand apart."""
    share = 0.012 * by
    if log:
        return x * (max(places) / min(places)) ** share
    return x + share * (max(places) - min(places))


def log_spaced(values: Sequence[float]) -> bool:
    """Whether numbers are spread more evenly by their ratios than by their differences."""
    ordered = np.unique(np.asarray(values, float))
    if len(ordered) < 2 or ordered[0] <= 0:
        return False
    if len(ordered) == 2:
        return bool(ordered[1] / ordered[0] >= LOG_RATIO)
    uneven = [
        np.std(steps) / np.mean(steps) for steps in (np.diff(np.log(ordered)), np.diff(ordered))
    ]
    return bool(uneven[0] < uneven[1] and ordered[-1] / ordered[0] >= LOG_RATIO)
