"""The page: header, sections, the points of the curves, the figures."""

import base64
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

from experiments.report import claims, sections
from experiments.report.markup import Markup, duration, escape, number, tag
from experiments.report.runs import STATUSES, Figure, Run, decimate

MARKER = "<!-- rml experiment report -->"
POINTS = 400  # a curve; more than a chart has pixels to tell apart
TOTAL_POINTS = 400_000  # a page, about 10 MB
NAMES = {
    "claims": "Claims",
    "runs": "Runs",
    "curves": "Curves",
    "figures": "Figures",
    "configs": "What differs",
    "details": "Details",
    "versions": "Versions",
}
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
    charts, data = curves(runs)
    gallery, left_out = figures(runs, figure_bytes)
    differences = sections.config_differences(runs)
    table = claims.claims_table(runs)
    note = claims.NOTE if any(run.claims for run in runs) else ""
    parts = [
        sections.section("claims", "Claims", table, note=note),
        sections.section("runs", "Runs", sections.runs_table(runs)),
        sections.section("curves", "Curves", charts) if charts else None,
        sections.section("figures", "Figures", gallery, note=left_out) if gallery else None,
        sections.section("configs", "What differs", differences) if differences else None,
        sections.section("details", "Run details", sections.details(runs)),
        sections.section("versions", "Versions and devices", sections.environment(runs)),
    ]
    moment = (now or datetime.now()).astimezone()
    body = escape(parts)
    nav = [tag("a", text, href=f"#{key}") for key, text in NAMES.items() if f'id="{key}"' in body]
    return Template((_HERE / "template.html").read_text()).substitute(
        marker=MARKER,
        title=escape(title),
        style=(_HERE / "style.css").read_text(),
        script=(_HERE / "script.js").read_text(),
        summary=summary(runs),
        moment=tag("time", f"{moment:%Y-%m-%d %H:%M %Z}", datetime=moment.isoformat()),
        nav=escape(nav),
        filters=filters(runs),
        body=body,
        data=script_json(data),
    )


def summary(runs: Sequence[Run]) -> Markup:
    """The line under the title: how many runs, in what state, how many claims hold."""
    groups = sections.by_experiment(runs)
    states = [(sum(run.status == s for run in runs), s) for s in STATUSES]
    other = len(runs) - sum(count for count, _ in states)
    state = ", ".join(f"{n} {s}" for n, s in [*states, (other, "other")] if n)
    measured = [claim for run in runs for claim in run.claims]
    held = sum(claim.get("holds") is True for claim in measured)
    total = sum(s for run in runs if (s := run.seconds) is not None and math.isfinite(s))
    parts = [
        f"{_count(len(runs), 'run')} of {_count(len(groups), 'experiment')}: {state}",
        f"{held} of {_count(len(measured), 'measured claim')} hold" + "s" * (len(measured) == 1)
        if measured
        else "no claims measured yet",
        f"{duration(total)} of computing",
    ]
    return escape(". ".join(part[0].upper() + part[1:] for part in parts) + ".")


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
        tag("input", type="search", placeholder="Filter runs…", aria_label="Filter runs by words"),
        choice("experiments", "Experiment", experiments),
        choice("states", "Status", states),
        tag("output", _count(len(runs), "run"), aria_live="polite"),
        class_="filters scripted",
    )


def curves(runs: Sequence[Run]) -> tuple[list[Markup], dict[str, Any]]:
    """Places for the charts, one a metric and experiment, and the points that they draw."""
    total = sum(len(s.steps) > 1 for run in runs for s in run.series.values())
    limit = max(24, min(POINTS, TOTAL_POINTS // max(total, 1)))
    charts: list[dict[str, Any]] = []
    parts = []
    groups = sections.by_experiment(runs)
    for experiment, members in groups.items():
        names = {name for i in members for name, s in runs[i].series.items() if len(s.steps) > 1}
        places = []
        for name in sorted(names, key=_chart_order):
            drawn = [i for i in members if name in runs[i].series]
            places.append(
                tag(
                    "figure",
                    tag("figcaption", name),
                    tag("div", class_="plot"),
                    class_="chart",
                    data_chart=len(charts),
                    data_runs=" ".join(map(str, drawn)),
                )
            )
            charts.append({"metric": name, "series": [_points(runs[i], i, name, limit)
                                                      for i in drawn]})  # fmt: skip
        if places:
            parts.append(
                tag(
                    "div",
                    tag("h3", experiment) if len(groups) > 1 else None,
                    tag("div", class_="legend", data_members=" ".join(map(str, members))),
                    tag("div", places, class_="charts"),
                    class_="group",
                    data_runs=" ".join(map(str, members)),
                )
            )
    if parts:
        parts.insert(0, Markup((_HERE / "controls.html").read_text()))
    facts = [
        {
            "name": run.name,
            "experiment": run.experiment,
            "status": run.status,
            "words": " ".join(
                [run.name, run.experiment, run.status, run.devices, f"seed={run.seed}"]
            ).lower(),
        }
        for run in runs
    ]
    return parts, {"runs": facts, "charts": charts}


def _points(run: Run, index: int, name: str, limit: int) -> dict[str, Any]:
    series = run.series[name]
    kept = decimate(series.values, limit)
    return {
        "run": index,
        "x": [_rounded(series.steps[i], 12) for i in kept],
        "t": [_rounded(series.times[i], 7) for i in kept],
        "y": [_rounded(series.values[i], 5) for i in kept],
    }


def _rounded(value: float, digits: int) -> float | int | None:
    """A short number for JSON; None, a gap in the curve, for what is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def _chart_order(name: str) -> tuple[bool, bool, str]:
    return (not name.startswith("eval/"), "loss" not in name, name)


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
