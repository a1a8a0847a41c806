"""Curves, and metrics against hyperparameters: their places in the page and their points."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import sections
from experiments.report.groups import ABSENT, Group, final, varied_alone
from experiments.report.markup import Markup, tag
from experiments.report.runs import Run, decimate

POINTS = 400  # a curve; more than a chart has pixels to tell apart
TOTAL_POINTS = 400_000  # a page, about 10 MB
_CONTROLS = Path(__file__).parent / "controls.html"


def curves(
    runs: Sequence[Run], groups: Sequence[Group]
) -> tuple[list[Markup], list[dict[str, Any]]]:
    """Places for the charts, one a metric and experiment, and the points that they draw."""
    total = sum(len(s.steps) > 1 for run in runs for s in run.series.values())
    limit = max(24, min(POINTS, TOTAL_POINTS // max(total, 1)))
    charts: list[dict[str, Any]] = []
    parts = []
    experiments = sections.by_experiment(runs)
    for experiment, members in experiments.items():
        names = {name for i in members for name, s in runs[i].series.items() if len(s.steps) > 1}
        own = [place for place, group in enumerate(groups) if group.members[0] in members]
        places = []
        for name in sorted(names, key=_chart_order):
            drawn = [i for i in members if name in runs[i].series]
            of_runs = " ".join(map(str, drawn))
            places.append(_chart(name, data_chart=len(charts), data_runs=of_runs))
            series = [s for place in own for s in _points(runs, groups[place], name, limit)]
            charts.append({"metric": name, "series": sorted(series, key=lambda s: s["run"])})
        if places:
            parts.append(
                tag(
                    "div",
                    tag("h3", experiment) if len(experiments) > 1 else None,
                    tag("div", class_="legend", data_groups=" ".join(map(str, own))),
                    tag("div", places, class_="charts"),
                    class_="group",
                    data_runs=" ".join(map(str, members)),
                )
            )
    if parts:
        parts.insert(0, Markup(_CONTROLS.read_text()))
    return parts, charts


def hyperparameters(
    runs: Sequence[Run],
    groups: Sequence[Group],
    metrics: Sequence[str],
    differing: Mapping[str, Sequence[Any]],
) -> list[Markup]:
    """The place for a metric against a key of the config, nothing where no runs can be compared."""
    keys = varied_alone(groups, differing)
    measured = [m for m in metrics if sum(final(run, m) is not None for run in runs) > 1]
    if not keys or not measured:
        return []

    def choice(name: str, label: str, options: Sequence[str], *, empty: str = "") -> Markup:
        first = [tag("option", empty, value="")] if empty else []
        options_ = [tag("option", option, value=option) for option in options]
        return tag("label", label, " ", tag("select", first, options_, data_plot=name))

    controls = tag(
        "div",
        choice("y", "Metric", measured),
        choice("x", "against", keys),
        choice("by", "Colour", keys, empty="none"),
        class_="controls scripted", role="group", aria_label="What is compared",
    )  # fmt: skip
    return [controls, tag("div", class_="legend"), _chart("", class_="chart plane")]


def run_facts(
    runs: Sequence[Run], groups: Sequence[Group], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """What the page's script knows of each run."""
    group_of = {index: place for place, group in enumerate(groups) for index in group.members}
    return [
        {
            "name": run.name,
            "experiment": run.experiment,
            "status": run.status,
            "group": group_of[index],
            "metrics": [final(run, name) for name in metrics],
            "words": " ".join(
                [run.name, run.experiment, run.status, run.devices, run.config_name, run.commit]
            ).lower(),
        }
        for index, run in enumerate(runs)
    ]


def plain(value: Any) -> str | float | None:
    """A config's value for the page's script: numbers and text as they are, others as JSON."""
    if value is ABSENT:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def _chart(name: str, *, class_: str = "chart", **attributes: Any) -> Markup:
    """A place in which the script draws."""
    caption = tag("figcaption", tag("span", name))
    return tag("figure", caption, tag("div", class_="plot"), class_=class_, **attributes)


def _points(runs: Sequence[Run], group: Group, name: str, limit: int) -> list[dict[str, Any]]:
    """The curves of a group, at the same steps in all its runs so that they have means."""
    members = [i for i in group.members if name in runs[i].series]
    share = max(4, limit // max(len(members), 1))
    kept = {
        runs[i].series[name].steps[k]
        for i in members
        for k in decimate(runs[i].series[name].values, share)
    }
    found = []
    for index in members:
        series = runs[index].series[name]
        places = [k for k, step in enumerate(series.steps) if step in kept]
        found.append(
            {
                "run": index,
                "x": [_rounded(series.steps[k], 12) for k in places],
                "t": [_rounded(series.times[k], 7) for k in places],
                "y": [_rounded(series.values[k], 5) for k in places],
            }
        )
    return found


def _rounded(value: float, digits: int) -> float | int | None:
    """A short number for JSON; None, a gap in the curve, for what is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def _chart_order(name: str) -> tuple[bool, bool, str]:
    return (not name.startswith("eval/"), "loss" not in name, name)
