"""The page's sections: runs, configs that differ, each run in detail, versions."""

import json
import math
from collections.abc import Sequence
from typing import Any

from experiments.report.markup import Markup, breakable, duration, number, tag
from experiments.report.runs import Run, flatten

SHOWN_METRICS = 6
BESIDE_CONFIG = 2  # metrics that stand beside what differs
SYMBOLS = {"complete": "✓", "running": "▸", "interrupted": "◐", "failed": "✗"}
_ABSENT = object()


def section(identifier: str, heading: str, *content: Any, note: str = "") -> Markup:
    """A section of the page."""
    return tag(
        "section",
        tag("h2", heading),
        tag("p", note, class_="note") if note else None,
        content,
        id=identifier,
    )


def scroll(label: str, content: Any) -> Markup:
    """A box in which a wide table scrolls, also by keyboard."""
    return tag("div", content, class_="scroll", role="region", tabindex="0", aria_label=label)


def status(run: Run) -> Markup:
    """A run's status as a symbol and a word."""
    kind = run.status if run.status in SYMBOLS else "other"
    symbol = tag("span", SYMBOLS.get(run.status, "•"), aria_hidden="true")
    return tag("span", symbol, " ", run.status, class_=f"status {kind}")


def link(index: int, run: Run) -> Markup:
    """A link to a run's details."""
    return tag("a", breakable(run.name), href=f"#run-{index}")


def by_experiment(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Experiment to the indices of its runs."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(run.experiment, []).append(index)
    return dict(sorted(groups.items()))


def runs_table(runs: Sequence[Run]) -> Markup:
    """The table of runs, with a choice of metrics as columns."""
    metrics = _metric_order(runs)
    fixed = ("Run", "Experiment", "Status", "Steps", "Time")
    head = [heading(t, sticky=t == "Run", numeric=t in ("Steps", "Time")) for t in fixed]
    for place, name in enumerate(metrics):
        hidden = place >= SHOWN_METRICS
        head.append(heading(name, numeric=True, column=f"m{place}", hidden=hidden))
    head += [heading("Seed", numeric=True), heading("Device")]
    rows = []
    for index, run in enumerate(runs):
        cells = [
            tag("th", link(index, run), scope="row", class_="sticky", data_v=run.name),
            tag("td", breakable(run.experiment), data_v=run.experiment),
            tag("td", status(run), _notes_mark(run), data_v=run.status),
            tag("td", _steps(run), class_="number", data_v=_plain(run.last_step)),
            tag("td", duration(run.seconds), class_="number", data_v=_plain(run.seconds)),
        ]
        for place, name in enumerate(metrics):
            hidden = place >= SHOWN_METRICS
            cells.append(_metric_cell(run, name, data_column=f"m{place}", hidden=hidden))
        cells.append(tag("td", run.seed, class_="number", data_v=run.seed))
        cells.append(tag("td", run.devices, data_v=run.devices))
        rows.append(tag("tr", cells, data_run=index))
    picks = [
        tag(
            "label",
            tag("input", type="checkbox", value=f"m{place}", checked=place < SHOWN_METRICS),
            " ", name,
        )
        for place, name in enumerate(metrics)
    ]  # fmt: skip
    chooser = tag(
        "details",
        tag("summary", f"Metric columns ({len(metrics)})"),
        tag("div", picks, class_="picks"),
        class_="columns scripted",
    )
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="sortable")
    return Markup((chooser if metrics else "") + scroll("Runs", table))


def _metric_cell(run: Run, name: str, **attributes: Any) -> Markup:
    """A metric's value, with the step where it was measured if the run is unfinished."""
    value, at = run.metrics.get(name, (None, None))
    return tag(
        "td",
        None if value is None else number(value),
        None if at is None else tag("small", f" @{number(at)}"),
        class_="number",
        data_v=_plain(value),
        title=None if at is None else f"unfinished: measured at step {number(at)}",
        **attributes,
    )


def _metric_order(runs: Sequence[Run]) -> list[str]:
    """Metrics that most runs share first, among them those that claims read, then short names."""
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.metrics:
            counts[name] = counts.get(name, 0) + 1
    claimed = {str(claim.get("metric")) for run in runs for claim in run.claims}
    return sorted(counts, key=lambda n: (-counts[n], n not in claimed, len(n), n))


def config_differences(runs: Sequence[Run]) -> list[Markup]:
    """For each experiment with several runs, the keys of the config in which they differ."""
    parts = []
    for experiment, members in by_experiment(runs).items():
        if len(members) < 2:
            continue
        flat = {i: flatten(runs[i].config) for i in members if runs[i].config}
        keys = sorted({key for config in flat.values() for key in config})
        differing = [k for k in keys if len({_value(c.get(k, _ABSENT)) for c in flat.values()}) > 1]
        same = {k: next(iter(flat.values()))[k] for k in keys if k not in differing}
        if differing:
            body = scroll(f"Config of {experiment}", _difference_table(runs, flat, differing))
        else:
            body = tag("p", f"All {len(flat)} configs are equal.", class_="empty")
        shared = tag(
            "details",
            tag("summary", f"{len(same)} keys that all {len(flat)} runs share"),
            tag("pre", "\n".join(f"{key} = {_value(value)}" for key, value in same.items())),
        )
        parts.append(
            tag(
                "div",
                tag("h3", experiment, " ", tag("small", f"{len(members)} runs")),
                body,
                shared if same else None,
                data_runs=" ".join(map(str, members)),
            )
        )
    return parts


def _difference_table(
    runs: Sequence[Run], flat: dict[int, dict[str, Any]], differing: list[str]
) -> Markup:
    """Runs down and keys across, or the other way round where the keys outnumber the runs."""

    def cell(index: int, key: str, **attributes: Any) -> Markup:
        text = _value(flat[index].get(key, _ABSENT))
        return tag("td", text, class_="value", data_v=text, **attributes)

    if len(differing) > len(flat):
        head = [heading("Key", sticky=True), *(heading(runs[i].name, data_run=i) for i in flat)]
        rows = [
            tag(
                "tr",
                tag("th", key, scope="row", class_="sticky", data_v=key),
                [cell(i, key, data_run=i) for i in flat],
            )
            for key in differing
        ]
    else:
        measured = _metric_order([runs[i] for i in flat])[:BESIDE_CONFIG]
        head = [heading("Run", sticky=True), *map(heading, differing)]
        head += [heading(name, numeric=True) for name in measured]
        rows = [
            tag(
                "tr",
                tag("th", link(i, runs[i]), scope="row", class_="sticky", data_v=runs[i].name),
                [cell(i, key) for key in differing],
                [_metric_cell(runs[i], name) for name in measured],
                data_run=i,
            )
            for i in flat
        ]
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", rows), class_="sortable")


def details(runs: Sequence[Run]) -> list[Markup]:
    """Everything about each run, folded."""
    return [_detail(index, run) for index, run in enumerate(runs)]


def _detail(index: int, run: Run) -> Markup:
    summary = run.summary
    facts = {
        "Experiment": run.experiment,
        "Config": summary.get("config_name"),
        "Directory": run.path,
        "Steps": _steps(run),
        "Time": duration(run.seconds),
        "Seed": run.seed,
        "Devices": run.devices,
        "Started": summary.get("started"),
        "Finished": summary.get("finished"),
        "Versions": ", ".join(f"{k} {v}" for k, v in run.versions.items()),
    }
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", number(value), class_="number"),
            tag("td", f"at step {number(at)}") if at is not None else None,
        )
        for name, (value, at) in run.metrics.items()
    ]
    config = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    return tag(
        "details",
        tag("summary", tag("b", run.name), " ", status(run), _notes_mark(run)),
        tag("ul", [tag("li", note) for note in run.notes], class_="notes") if run.notes else None,
        tag(
            "dl",
            [(tag("dt", k), tag("dd", v)) for k, v in facts.items() if v not in (None, "", "–")],
        ),
        scroll("Metrics", tag("table", tag("tbody", rows))) if rows else None,
        tag("details", tag("summary", "Config"), tag("pre", config)) if run.config else None,
        id=f"run-{index}",
        class_="run",
        data_run=index,
    )


def environment(runs: Sequence[Run]) -> Markup:
    """Versions and devices, each with the runs that had it."""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        for name, version in {**run.versions, "device": run.devices}.items():
            if version:
                versions = found.setdefault(name, {})
                versions[version] = versions.get(version, 0) + 1
    if not found:
        return tag("p", "Runs record versions and devices when they complete.", class_="empty")
    rows = []
    for name in sorted(found, key=lambda n: (n != "device", n != "python", n)):
        several = len(found[name]) > 1
        text = ", ".join(
            f"{version} ({count} run{'s' * (count != 1)})" if several else version
            for version, count in sorted(found[name].items())
        )
        rows.append(tag("tr", tag("th", name, scope="row"), tag("td", text)))
    return scroll("Versions and devices", tag("table", tag("tbody", rows)))


def heading(
    text: str,
    *,
    sticky: bool = False,
    numeric: bool = False,
    column: str | None = None,
    **attributes: Any,
) -> Markup:
    """A column's heading, a button that sorts by it."""
    return tag(
        "th",
        tag("button", breakable(text), type="button"),
        scope="col",
        class_="sticky" if sticky else "number" if numeric else None,
        data_column=column,
        **attributes,
    )


def _steps(run: Run) -> str:
    if run.status != "complete" and run.planned_steps and run.last_step is not None:
        return f"{number(run.last_step)} of {number(run.planned_steps)}"
    return number(run.last_step)


def _notes_mark(run: Run) -> Markup | None:
    if not run.notes or run.notes == ["No metrics yet."]:
        return None
    count = f"{len(run.notes)} note{'s' * (len(run.notes) != 1)}"
    return tag("span", " ⚠ ", count, class_="noted", title=" ".join(run.notes))


def _plain(value: float | None) -> str:
    """A number for sorting; what is not finite sorts like what is missing."""
    return repr(value) if value is not None and math.isfinite(value) else ""


def _value(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
