"""Parts of the page's sections, each run in detail, versions."""

import json
import math
from collections.abc import Sequence
from typing import Any

from experiments.report.markup import Markup, breakable, duration, number, tag
from experiments.report.runs import Run

SYMBOLS = {"complete": "✓", "running": "▸", "interrupted": "◐", "failed": "✗"}


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
    at = f" at step {number(run.last_step)}" if kind == "failed" and run.last_step else ""
    return tag("span", symbol, " ", run.status, at, class_=f"status {kind}")


def link(index: int, run: Run) -> Markup:
    """A link to a run's details."""
    return tag("a", breakable(run.name), href=f"#run-{index}")


def by_experiment(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Experiment to the indices of its runs."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(run.experiment, []).append(index)
    return dict(sorted(groups.items()))


def details(runs: Sequence[Run]) -> list[Markup]:
    """Everything about each run, folded."""
    return [_detail(index, run) for index, run in enumerate(runs)]


def _detail(index: int, run: Run) -> Markup:
    summary = run.summary
    facts = {
        "Experiment": run.experiment,
        "Config": run.config_name,
        "Commit": run.commit,
        "Directory": run.path,
        "Steps": steps(run),
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
        tag("summary", tag("b", run.name), " ", status(run), notes_mark(run)),
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
    """Versions, commits and devices, each with the runs that had it."""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        for name, version in {**run.versions, "device": run.devices, **commit(run)}.items():
            if version:
                versions = found.setdefault(name, {})
                versions[version] = versions.get(version, 0) + 1
    if not found:
        return tag("p", "Runs record versions and devices when they complete.", class_="empty")
    rows = []
    for name in sorted(found, key=lambda n: (n != "device", n != "commit", n != "python", n)):
        several = len(found[name]) > 1
        text = ", ".join(
            f"{version} ({count} run{'s' * (count != 1)})" if several else version
            for version, count in sorted(found[name].items())
        )
        rows.append(tag("tr", tag("th", name, scope="row"), tag("td", text)))
    return scroll("Versions and devices", tag("table", tag("tbody", rows)))


def commit(run: Run) -> dict[str, str]:
    """The commit of a run that has begun to record what it ran with."""
    return {"commit": run.commit} if run.summary or run.failure else {}


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


def steps(run: Run) -> str:
    """How many steps are done, of how many where the run is unfinished."""
    if run.status != "complete" and run.planned_steps and run.last_step is not None:
        return f"{number(run.last_step)} of {number(run.planned_steps)}"
    return number(run.last_step)


def notes_mark(run: Run) -> Markup | None:
    """A mark that tells how many notes a run has, nothing where it has none worth a look."""
    if not run.notes or run.notes == ["No metrics yet."]:
        return None
    count = f"{len(run.notes)} note{'s' * (len(run.notes) != 1)}"
    return tag("span", " ⚠ ", count, class_="noted", title=" ".join(run.notes))


def plain(value: float | None) -> str:
    """A number for sorting; what is not finite sorts like what is missing."""
    return repr(value) if value is not None and math.isfinite(value) else ""
