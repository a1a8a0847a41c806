"""The page: header, sections, figures, the data that its script draws and filters."""

import base64
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

from experiments.report import charts, claims, sections, tables
from experiments.report.groups import better, differing_keys, group_runs, quantiles
from experiments.report.markup import Markup, duration, escape, number, tag
from experiments.report.runs import STATUSES, Figure, Run
from experiments.results import count_verdicts

MARKER = "<!-- rml experiment report -->"
SCRIPTS = ("tables.js", "charts.js", "explore.js", "downloads.js", "gallery.js")
NAMES = {
    "claims": "Claims",
    "runs": "Runs",
    "curves": "Curves",
    "hyperparameters": "Hyperparameters",
    "figures": "Figures",
    "configs": "What differs",
    "details": "Details",
    "versions": "Versions",
}
METHODS = "methods"
"""Folder in a run directory with the directories of the methods that the run compares."""
_HERE = Path(__file__).parent


def render(
    runs: Sequence[Run],
    *,
    title: str = "Experiment report",
    figure_bytes: int = 40_000_000,
    now: datetime | None = None,
) -> str:
    """The whole page.

    Args:
      runs: Runs, at least one.
      title: The page's title.
      figure_bytes: Most bytes of PNG to embed; figures past it are named, not shown.
      now: When the page was made; the clock's time if None.

    Returns:
      HTML that refers to nothing outside itself.
    """
    groups = group_runs(runs)
    measured = claims.measured_claims(runs, groups)
    metrics = tables.metric_order(runs)
    places, drawn = charts.curves(runs, groups)
    differing, shared = differing_keys(runs)
    plot = charts.hyperparameters(runs, groups, metrics, differing)
    gallery, left_out = figures(runs, figure_bytes)
    differences = tables.config_differences(runs)
    table = claims.claims_table(runs, measured)
    parts = [
        sections.section("claims", "Claims", table, note=claims.NOTE if measured else ""),
        sections.section("runs", "Runs", tables.runs_section(runs, groups, metrics)),
        sections.section("curves", "Curves", places) if places else None,
        sections.section("hyperparameters", NAMES["hyperparameters"], plot) if plot else None,
        sections.section("figures", "Figures", gallery, note=left_out) if gallery else None,
        sections.section("configs", "What differs", differences) if differences else None,
        sections.section("details", "Run details", sections.details(runs)),
        sections.section("versions", "Versions and devices", sections.environment(runs)),
    ]
    data = {
        "runs": charts.run_facts(runs, groups, metrics),
        "groups": [{"name": group.name, "members": group.members} for group in groups],
        "metrics": metrics,
        "better": [better(name) for name in metrics],
        "claims": claims.claims_data(measured),
        "quantiles": quantiles(max(len(group.members) for group in groups)),
        "keys": {key: list(map(charts.plain, values)) for key, values in differing.items()},
        "shared": {key: charts.plain(value) for key, value in shared.items()},
        "charts": drawn,
    }
    moment = (now or datetime.now()).astimezone()
    body = escape(parts)
    nav = [tag("a", text, href=f"#{key}") for key, text in NAMES.items() if f'id="{key}"' in body]
    return Template((_HERE / "template.html").read_text()).substitute(
        marker=MARKER,
        title=escape(title),
        style=(_HERE / "style.css").read_text(),
        script="\n".join((_HERE / name).read_text() for name in SCRIPTS),
        summary=summary(runs, measured),
        moment=tag("time", f"{moment:%Y-%m-%d %H:%M %Z}", datetime=moment.isoformat()),
        nav=escape(nav),
        filters=filters(runs),
        body=body,
        data=script_json(data),
    )


def summary(runs: Sequence[Run], measured: Sequence[claims.Measured]) -> Markup:
    """The line under the title: how many runs, in what state, how many claims hold."""
    states = [(sum(run.status == s for run in runs), s) for s in STATUSES]
    other = len(runs) - sum(count for count, _ in states)
    state = ", ".join(f"{n} {s}" for n, s in [*states, (other, "other")] if n)
    verdicts = [{"verdict": each.verdict} for each in measured if each.verdict in claims.KINDS]
    experiments = _count(len(sections.by_experiment(runs)), "experiment")
    parts = [
        f"{_count(len(runs), 'run')} of {experiments}: {state}",
        f"claims: {count_verdicts(verdicts)}" if verdicts else "no claims measured yet",
        f"{duration(computing(runs))} of computing",
    ]
    return escape(". ".join(part[0].upper() + part[1:] for part in parts) + ".")


def computing(runs: Sequence[Run]) -> float:
    """Adds up seconds of runs; those of methods that a complete run compares are in its own."""
    whole = {run.path.resolve() for run in runs if "seconds" in run.summary}
    return sum(
        seconds
        for run in runs
        if (seconds := run.seconds) is not None and math.isfinite(seconds)
        and not ((path := run.path.resolve()).parent.name == METHODS and path.parents[1] in whole)
    )  # fmt: skip


def filters(runs: Sequence[Run]) -> Markup:
    """The bar that narrows every section to some runs."""
    if len(runs) < 2:
        return Markup("")
    experiments = list(sections.by_experiment(runs))
    states = sorted({run.status for run in runs})

    def choice(name: str, label: str, options: list[str]) -> Markup | None:
        if len(options) < 2:
            return None
        every = tag("option", f"all {name}", value="")
        return tag(
            "select",
            every,
            [tag("option", option, value=option) for option in options],
            aria_label=label,
            data_filter=name,
        )

    return tag(
        "form",
        tag(
            "input", type="search", placeholder="Filter: words, temperature=0.1",
            aria_label="Filter runs by words, or by config values such as temperature=0.1",
        ),
        choice("experiments", "Experiment", experiments),
        choice("states", "Status", states),
        tag("output", _count(len(runs), "run"), aria_live="polite"),
        class_="filters scripted",
    )  # fmt: skip


def figures(runs: Sequence[Run], budget: int) -> tuple[list[Markup], str]:
    """The gallery by experiment; of every run the first figures first while the budget lasts."""
    turn = sorted(
        (
            (place, i, figure)
            for i, run in enumerate(runs)
            for place, figure in enumerate(run.figures)
        ),
        key=lambda item: item[:2],
    )
    shown: dict[str, list[tuple[str, int, Markup]]] = {}
    missing = 0
    for _, index, figure in turn:
        content = _png(figure) if figure.size <= budget else None
        if content is None:
            missing += 1
            continue
        budget -= len(content)
        card = _card(runs[index], index, figure, content)
        shown.setdefault(runs[index].experiment, []).append((figure.path.name, index, card))
    parts = []
    groups = sections.by_experiment(runs)
    for experiment, members in groups.items():
        # Like beside like: the same figure of all runs, then the next figure.
        cards = [card for *_, card in sorted(shown.get(experiment, []))]
        if cards:
            parts.append(
                tag(
                    "div",
                    tag("h3", experiment) if len(groups) > 1 else None,
                    tag("div", cards, class_="gallery"),
                    data_runs=" ".join(map(str, members)),
                )
            )
    note = f"{_count(missing, 'figure')} left out to keep the page small (--figures_mb)."
    return parts, note if missing else ""


def _png(figure: Figure) -> bytes | None:
    try:
        return figure.path.read_bytes()
    except OSError:
        return None


def _card(run: Run, index: int, figure: Figure, content: bytes) -> Markup:
    image = tag(
        "img",
        src="data:image/png;base64," + base64.b64encode(content).decode(),
        alt=f"{figure.caption}, run {run.name}",
        width=figure.width,
        height=figure.height,
        loading="lazy",
    )
    return tag(
        "figure",
        tag("button", image, type="button", class_="enlarge", title="Enlarge"),
        tag(
            "figcaption",
            figure.caption,
            tag("span", sections.link(index, run), class_="source"),
        ),
        data_run=index,
    )


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element, whatever the names in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: no U+2028 either
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _count(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'s' * (count != 1)}"
