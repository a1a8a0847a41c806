"""Makes results of run directories: joins seeds, judges claims, keeps a picture.

A result is made of the directories alone, so that it can be made whenever they were run.
"""

import io
import json
import os
import platform
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from experiments.commit import UNKNOWN
from experiments.commit import current_commit as current_commit
from experiments.common.figures import canvas
from experiments.common.trial_figures import draw_arms
from experiments.registry import options_tried
from experiments.results import (  # fmt: skip
    RELATIONS,
    config_hash,
    count_claims,
    number,
    read_result,
    reason_to_keep,
    recipe_of,
    result_file,
)
from rml.errors import UserError, unknown
from rml.training.claims import PASSES, VERDICTS, Claim, judge, over_runs
from rml.training.config_file import extended_from, read_config, read_summary
from rml.training.durable import write_json

PICTURE_BYTES, PICTURE_WIDTH = 60_000, 700  # one of hundreds in the repository
MARKS = dict(zip(VERDICTS, "oXDsoX", strict=True))
TRIES = ("tries_", "late_tries_")
"""Beginnings of the metrics that say how many combinations of options each side chose from: in all
of a run, and for the layers of a trained model that `experiments.attention.late` replaces."""


class Measured(NamedTuple):
    """Values of a metric, one a run, and both ends of each run's own interval where it has one."""

    values: Sequence[float]
    ends: Sequence[Sequence[float]]


class Joined(NamedTuple):
    """Complete runs of one config that differ in the seed alone, by seed.

    Attributes:
      hash: Hash of their config.
      seeds: Their seeds, rising.
      claims: The claims that they stated.
      metrics: Every metric's values, one a run, NaN where a run lacks it.
      summaries: Their summaries.
      tries: Number of combinations of options that their recipe counts from their config, by side.
    """

    hash: str
    seeds: list[int]
    claims: list[Claim]
    metrics: dict[str, list[float]]
    summaries: list[dict[str, Any]]
    tries: Mapping[str, int] = MappingProxyType({})

    def measured(self, metric: str) -> Measured:
        """A metric of all runs.

        Raises:
          UserError: No run has it.
        """
        if metric not in self.metrics:
            raise unknown("metric of a claim", metric, self.metrics)
        names = [f"{metric}_low", f"{metric}_high"]
        own = [self.metrics[name] for name in names if name in self.metrics]
        ends = list(zip(*own, strict=True)) if len(own) == len(names) else []
        return Measured(self.metrics[metric], ends)


def make_result(
    key: str,
    config_file: str,
    directories: Sequence[Path],
    *,
    nulls: Mapping[str, Sequence[Path]] = MappingProxyType({}),
    commit: str = "",
    claims: Sequence[Claim] | None = None,
) -> dict[str, Any]:
    """Joins complete runs of one config, and those of its nulls.

    Args:
      key: Key of the system.
      config_file: Path of the config's file.
      directories: Run directories, each with its `summary.json`.
      nulls: Run directories of each null run, by its name.
      commit: Commit of runs that do not name theirs.
      claims: What is judged, whatever the runs stated; what all of them stated if not given.

    Returns:
      The result as it is written.

    Raises:
      UserError: A claim is on a metric that no run has, the runs differ in more than the seed, two
        have the same seed, one is not complete, was extended, or ran on other data; or a null has
        other seeds.
    """
    found = join(directories, claims)
    absent = {name: join(runs, claims) for name, runs in nulls.items()}
    for name, null in absent.items():
        if null.seeds != found.seeds:
            raise UserError(
                f"null {name!r} of {config_file} has seeds {null.seeds}, expected {found.seeds}"
            )
    summaries = found.summaries
    finished = sorted(summary["finished"][: len("2025-01-31")] for summary in summaries)
    return {
        "system": key,
        "config": config_file,
        "experiment": summaries[0]["experiment"],
        "config_hash": found.hash,
        "seeds": found.seeds,
        "seeds_a_run": int((read_config(directories[0]) or {}).get("seeds", 1)),
        **_measured(found, absent, found.claims),
        **_arms(directories[0]),
        "seconds": [summary["seconds"] for summary in summaries],
        "versions": {
            name: _joined(s["versions"].get(name) for s in summaries)
            for name in summaries[0]["versions"]
        },
        "device": _joined(_device(summary["devices"]) for summary in summaries),
        "commit": _joined(one for s in summaries for one in _commits(s, commit)),
        "first_measured": finished[0],
        "finished": finished[-1],
    }


def _arms(directory: Path) -> dict[str, Any]:
    """The table of arms of a trial, and the strongest other of each question; of others nothing."""
    file = directory / "arms.json"
    if not file.exists():
        return {}
    kept = json.loads(file.read_text())
    stopped = {"no_go": kept["no_go"]} if "no_go" in kept else {}
    return {"arms": kept["table"], "names": kept["over"], **stopped}


def _commits(summary: Mapping[str, Any], given: str) -> list[str]:
    """Lists the commits of a run's starts; that which is given stands for one not known."""
    told = (summary.get("commit") or UNKNOWN).split(", ")
    return [given or UNKNOWN if one == UNKNOWN else one for one in told]


def _measured(
    found: Joined, absent: Mapping[str, Joined], claims: Iterable[Claim]
) -> dict[str, Any]:
    """What a result says of all seeds: metrics, claims, and how many options were tried.

    Of a side that the recipe counts too, the metric of the runs stands.
    """
    tries = {**found.tries} | {
        name.removeprefix(start): int(np.nanmax(values))
        for name, values in found.metrics.items()
        for start in TRIES
        if name.startswith(start)
    }
    return {
        "metrics": {
            name: [value if np.isfinite(value) else None for value in values]
            for name, values in found.metrics.items()
        },
        "claims": [_judge(claim, found, absent) for claim in claims],
        "options": tries or "fixed",
    }


def check_joins(old: Mapping[str, Any], run_hash: str, claims: Sequence[Claim], file: Path) -> None:
    """Refuses a result whose seeds cannot stand beside those of other runs.

    Args:
      old: The result.
      run_hash: Hash of the config of the other runs.
      claims: Their claims.
      file: The result's file, for messages.

    Raises:
      UserError: It is of another config or has other claims, or a claim's null ran on its own: of
        such a null a result keeps the values alone, and not the interval of each run.
    """
    why = _why_not_judged(old, run_hash, claims)
    if why or claims_of(old) != list(claims):
        raise UserError(
            f"{file} {why or 'has other claims'}: no seed can be joined with it; measure all "
            "seeds, without --join"
        )


def claims_of(result: Mapping[str, Any]) -> list[Claim]:
    """The claims of a result; none of one from before claims had nulls."""
    try:
        return [Claim.of(claim) for claim in result["claims"]]
    except (TypeError, ValueError):
        return []


def claims_to_judge(file: Path, run_hash: str, claims: Sequence[Claim]) -> Sequence[Claim] | None:
    """Today's claims where the result that is there has them; None where what runs stated counts.

    A result that was restated has them though its runs stated others, which are not to come back.

    Args:
      file: The result's file.
      run_hash: Hash of the config that is measured.
      claims: What is claimed today. Their sources may be worded otherwise there.
    """
    old = read_result(file) if file.exists() else None
    if old is None or old["config_hash"] != run_hash:
        return None
    there, today = ([replace(own, source="") for own in all] for all in (claims_of(old), claims))
    return claims if there == today else None


def _why_not_judged(old: Mapping[str, Any], run_hash: str, claims: Sequence[Claim]) -> str:
    """Why claims cannot be judged by what a result keeps; empty where they can.

    Of a null that ran on its own a result keeps the values alone, not the interval of each run.
    """
    apart = [claim.metric for claim in claims if claim.null_run]
    if old["config_hash"] != run_hash:
        return "is of another config"
    return f"has a null in runs of its own, of {', '.join(apart)}" if apart else ""


def restate_result(
    old: Mapping[str, Any], run_hash: str, claims: Sequence[Claim], file: Path, *,
    tries: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """A result with other claims, judged by the metrics that it keeps of every seed.

    Where a claim's null ran on its own, and the result has the same null of the same metric, the
    null stays as it was measured: a result keeps its values, and not the interval of each run.

    Args:
      old: The result.
      run_hash: Hash of the config that the claims are of.
      claims: What is claimed today.
      file: The result's file, for messages.
      tries: Number of combinations of options that the recipe counts from that config, by side.

    Raises:
      UserError: It is of another config, another claim's null ran on its own, or a claim is on a
        metric that the result lacks.
    """
    kept = {
        (judged["metric"], judged["null_run"]): judged
        for judged in old["claims"]
        if judged.get("null_run")
    }
    others = [claim for claim in claims if (claim.metric, claim.null_run) not in kept]
    if why := _why_not_judged(old, run_hash, others):
        raise UserError(f"{file} {why}: its claims cannot be restated; measure it again")
    metrics = {
        name: [float("nan") if value is None else value for value in values]
        for name, values in old["metrics"].items()
    }
    found = Joined(run_hash, old["seeds"], others, metrics, [], tries)
    measured = _measured(found, {}, others)
    judged = dict(zip(others, measured["claims"], strict=True))
    for claim in claims:
        if claim not in judged:
            judged[claim] = _judge_beside_null(claim, found, kept[claim.metric, claim.null_run])
    rows = rows_of(old, {claim.metric for claim in claims}, metrics)
    # A kept claim was compared without its words, which are those of today.
    stated = [judged[claim] | {"says": claim.says} for claim in claims]
    kept_of_old = {name: value for name, value in old.items() if name != "rows"}
    return {**kept_of_old, **measured, "claims": stated, **({"rows": rows} if rows else {})}


def rows_of(
    old: Mapping[str, Any], stated: Collection[str], metrics: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """What a result measured beside its claims: means with intervals, and no verdict.

    Args:
      old: The result, of whose claims some may be stated no longer.
      stated: Metrics of the claims of today.
      metrics: Values of every metric, one a run.

    Returns:
      A row for each former row and for each claim that fell away, in the order of the result.
    """
    before = [*old["claims"], *old.get("rows", ())]
    told = {row["metric"]: row["statement"] for row in before if row["metric"] not in stated}
    rows = []
    for metric, statement in told.items():
        if metric in metrics:
            mean, low, high = _over_runs(metrics, metric)
            row = {"statement": statement, "metric": metric, "mean": mean, "low": low, "high": high}
            rows.append(row)
    return rows


def _over_runs(metrics: Mapping[str, Sequence[float]], metric: str) -> list[float | None]:
    """Mean and interval over runs; None for what is not finite."""
    ends = [metrics[name] for name in (f"{metric}_low", f"{metric}_high") if name in metrics]
    own = list(zip(*ends, strict=True)) if len(ends) == 2 else []
    return [x if np.isfinite(x) else None for x in over_runs(metrics[metric], own)]


def join_results(result: Mapping[str, Any], old: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A result with the seeds of another one as well, its claims judged over all of them.

    Args:
      result: A result.
      old: Another. Of a seed that both have, its values stay.
      file: The file of the other, for messages.

    Raises:
      UserError: They cannot be joined, see `check_joins`.
    """
    claims = [Claim.of(claim) for claim in result["claims"]]
    check_joins(old, result["config_hash"], claims, file)
    parts = {
        seed: (part, place) for part in (result, old) for place, seed in enumerate(part["seeds"])
    }
    seeds = sorted(parts)

    def values(name: str) -> list[float]:
        absent = [None] * len(seeds)
        found = [part["metrics"].get(name, absent)[i] for part, i in map(parts.__getitem__, seeds)]
        return [float("nan") if value is None else value for value in found]

    names = dict.fromkeys([*old["metrics"], *result["metrics"]])
    tries = {} if result["options"] == "fixed" else result["options"]
    metrics = {name: values(name) for name in names}
    found = Joined(result["config_hash"], seeds, claims, metrics, [], tries)
    both = (old, result)
    return {
        **result,
        "seeds": seeds,
        **_measured(found, {}, claims),
        "seconds": [part["seconds"][i] for part, i in map(parts.__getitem__, seeds)],
        "versions": {
            name: _joined(one for part in both for one in part["versions"][name].split(", "))
            for name in result["versions"]
        },
        "device": _joined(
            one for part in both for one in re.split(r", (?=\d+ x )", part["device"])
        ),
        "commit": _joined(one for part in both for one in part["commit"].split(", ")),
        "first_measured": min(part["first_measured"] for part in both),
        "finished": max(part["finished"] for part in both),
    }


def _judge(claim: Claim, found: Joined, absent: Mapping[str, Joined]) -> dict[str, Any]:
    """A claim's verdict over runs, its null read from them or from the runs of the null."""
    own, nulls = found.measured(claim.metric), Measured((), ())
    if claim.null:
        nulls = found.measured(claim.null)
    elif claim.null_run in absent:
        nulls = absent[claim.null_run].measured(claim.metric)
    return judge(claim, own.values, ends=own.ends, nulls=nulls.values, null_ends=nulls.ends)


def _judge_beside_null(claim: Claim, found: Joined, was: Mapping[str, Any]) -> dict[str, Any]:
    """A claim's verdict over runs beside its null as it was judged."""
    own = found.measured(claim.metric)
    mean, *ends = (was[f"null_{name}"] for name in ("mean", "low", "high"))
    judged = judge(
        claim, own.values, ends=own.ends,
        nulls=[] if mean is None else [mean], null_ends=[] if None in ends else [ends],
    )  # fmt: skip
    return judged | {"null_values": was["null_values"], "note": was["note"]}


def join(directories: Sequence[Path], claims: Sequence[Claim] | None = None) -> Joined:
    """Reads complete runs of one config, with the claims that all of them stated or these.

    Raises:
      UserError: As `make_result`.
    """
    summaries = [_complete(directory) for directory in directories]
    order = sorted(range(len(summaries)), key=lambda i: summaries[i]["seed"])
    directories, summaries = [directories[i] for i in order], [summaries[i] for i in order]
    seeds = [summary["seed"] for summary in summaries]
    for directory, summary in zip(directories, summaries, strict=True):
        notes = [claim["note"] for claim in summary["claims"] if claim.get("note")]
        if notes:
            raise UserError(f"{directory}: {notes[0]}; expected runs on the data of their config")
    stated = [
        _stated(directory, summary) if claims is None else list(claims)
        for directory, summary in zip(directories, summaries, strict=True)
    ]
    configs = [read_config(directory) or {} for directory in directories]
    for directory, config in zip(directories, configs, strict=True):
        if (steps := extended_from(directory, config)) is not None:
            raise UserError(
                f"{directory} was extended, from {steps} steps; expected runs of the same length "
                "from their beginning: remove it and measure it again"
            )
    hashes = [config_hash(config) for config in configs]
    for directory, run_hash, own, seed in zip(directories, hashes, stated, seeds, strict=True):
        for what, differs in (
            ("of another config", run_hash != hashes[0]),
            ("with other claims", own != stated[0]),
            (f"of seed {seed} too", seeds.count(seed) > 1 and directory != directories[0]),
        ):
            if differs:
                raise UserError(
                    f"{directory} holds a run {what}, expected one that differs from "
                    f"{directories[0]} in the seed alone"
                )
    names = dict.fromkeys(name for summary in summaries for name in summary["metrics"])
    metrics = {n: [s["metrics"].get(n, float("nan")) for s in summaries] for n in names}
    tries = options_tried(recipe_of(summaries[0]), ConfigDict(configs[0]))
    return Joined(hashes[0], seeds, stated[0], metrics, summaries, tries)


def _stated(directory: Path, summary: Mapping[str, Any]) -> list[Claim]:
    """The claims that a run stated."""
    try:
        return [Claim.of(claim) for claim in summary["claims"]]
    except (TypeError, ValueError):
        raise UserError(
            f"{directory} holds a run from before claims had nulls; remove it and measure it again"
        ) from None


def _complete(directory: Path) -> dict[str, Any]:
    """The summary of a complete run."""
    summary = read_summary(directory)
    if summary is None:
        raise UserError(f"{directory} has no summary.json of a complete run; start its run again")
    return summary


def write_result(result: Mapping[str, Any], figures: Path, root: Path) -> str:
    """Writes a result and its picture, unless the one that is there has others or more seeds.

    The date of the config's first measurement is carried over from the one that is there.

    Args:
      result: Result as `make_result` gives it.
      figures: Folder with the figures of one of its runs, of which the recipe may name one as its
        `PICTURE`; without it the claims are drawn.
      root: Folder of all results.

    Returns:
      What was done, in one line.
    """
    file = result_file(root, result["system"], result["config"])
    kept = reason_to_keep(file, result["config_hash"], result["seeds"])
    if kept:
        return kept
    done = f"{file}: {count_claims(result['claims'])}"
    if file.exists():
        old = read_result(file)
        first = min(result["first_measured"], old.get("first_measured", old["finished"]))
        numbers = {
            name: [float("nan") if value is None else value for value in values]
            for name, values in result["metrics"].items()
        }
        rows = rows_of(old, {claim["metric"] for claim in result["claims"]}, numbers)
        result = {**result, "first_measured": first, **({"rows": rows} if rows else {})}
        if old["config_hash"] != result["config_hash"]:
            done += f" (replaces {len(old['seeds'])} seeds of another config)"
        elif lost := sorted({*old["seeds"]} - {*result["seeds"]}):
            done += f" (replaces seeds {lost}, without nulls)"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_picture(file.with_suffix(".png"), result, figures)
    write_json(file, result)
    return done


def rewrite_result(result: Mapping[str, Any], root: Path) -> str:
    """Writes a result whose claims alone are others; a figure that is its picture stays.

    Args:
      result: Result as `restate_result` gives it.
      root: Folder of all results.

    Returns:
      What was done, in one line.
    """
    file = result_file(root, result["system"], result["config"])
    if not getattr(recipe_of(result), "PICTURE", ""):
        draw_result(file.with_suffix(".png"), result)
    write_json(file, result)
    return f"{file}: {count_claims(result['claims'])}"


def save_picture(path: Path, result: Mapping[str, Any], figures: Path) -> None:
    """Saves a PNG: the figure that the recipe names, or what the numbers of the result draw."""
    name = getattr(recipe_of(result), "PICTURE", "")
    if name and not (figures / name).exists():
        raise UserError(f"{result['experiment']} names the picture {name!r}, not in {figures}")
    if name:
        path.write_bytes(shrink((figures / name).read_bytes()))
    else:
        draw_result(path, result)


def draw_result(path: Path, result: Mapping[str, Any]) -> None:
    """Draws a trial's arms, or the claims of any other result, in at most `PICTURE_BYTES`.

    Of a trial that ended at a condition there is nothing to draw; a picture of before goes.
    """
    if result.get("no_go"):
        path.unlink(missing_ok=True)
        return
    if result.get("arms"):
        draw_arms(path, result["arms"])
    else:
        draw_claims(path, result)
    path.write_bytes(shrink(path.read_bytes()))


def shrink(png: bytes) -> bytes:
    """A PNG in few colours and as large as fits into `PICTURE_BYTES`."""
    whole = Image.open(io.BytesIO(png)).convert("RGB")
    width = min(whole.width, PICTURE_WIDTH)
    while True:
        size = (width, max(1, round(whole.height * width / whole.width)))
        buffer = io.BytesIO()
        whole.resize(size, Image.Resampling.LANCZOS).quantize(64).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
        width = round(0.85 * width)


def draw_claims(path: Path, result: Mapping[str, Any]) -> None:
    """Draws each claim's values, mean and interval beside its threshold.

    Every row has a scale of its own: 0 is the threshold, right of it the claim is met.
    """
    claims, count = result["claims"], len(result["seeds"])
    lines = ", lines: 95% interval of the mean" if count > 1 else ""
    lines += ", bars: nulls"
    title = f"{result['config']}: {count} seed{'s' * (count != 1)} (dots){lines}"
    with canvas(path, (6.0, 0.9 + 0.34 * max(len(claims), 1))) as figure:
        ax = figure.add_subplot()
        for row, claim in enumerate(claims):
            sign = 1 if claim["relation"] == ">=" else -1
            seeds = result["metrics"][claim["metric"]]
            values = [claim["low"], claim["high"], claim["mean"], claim["null_mean"], *seeds]
            beyond = sign * (np.array(values, float) - claim["threshold"])  # None becomes NaN
            finite = np.abs(beyond[np.isfinite(beyond)])
            places = beyond / (finite.max(initial=0.0) or 1.0)
            held = claim["verdict"] in PASSES
            ax.plot(places[:2], [row, row], "-", color="#000000", linewidth=1.1)
            ax.plot(places[3], row, "|", color="#000000", markersize=9, zorder=3)
            ax.plot(places[4:], [row] * count, ".", color="#999999", zorder=3)
            ax.plot(
                places[2], row, MARKS[claim["verdict"]], markersize=5.5, zorder=4,
                color="#000000", markerfacecolor="#000000" if held else "#FFFFFF",
            )  # fmt: skip
            mean = "not finite" if claim["mean"] is None else number(claim["mean"])
            needed = f"{RELATIONS[claim['relation']]} {claim['threshold']:g}"
            words = f"{mean} ({needed}), {claim['verdict']}"
            ax.text(1.12, row, words, va="center", fontsize=7)
        ax.axvline(0, color="#333333", linestyle="--", linewidth=0.9, zorder=1)
        ax.set_xlim(-1.1, 1.1)
        ax.set_ylim(max(len(claims), 1) - 0.5, -0.5)
        ax.set_xticks([0], ["threshold"])
        ax.set_yticks(range(len(claims)), [claim["metric"] for claim in claims])
        ax.set_xlabel("← misses          meets →\neach row to its own scale", fontsize=7)
        ax.set_title(title, fontsize=7, loc="left")


def _device(kinds: Sequence[str]) -> str:
    """Devices by kind, for example "1 x cpu (AMD EPYC, 2 cores)"."""
    text = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return f"{text} ({processor()})" if "cpu" in kinds else text


def processor() -> str:
    """Model and number of cores of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def _joined(values: Iterable[Any]) -> str:
    """Distinct values in the order of their first appearance."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
