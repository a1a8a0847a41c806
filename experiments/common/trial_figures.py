"""The pictures that every trial has: arms beside the strongest baseline, cost, curves, groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.figures import COLUMN, canvas, look
from experiments.common.figures.canvas import shorten
from experiments.common.trial_answers import effect, matrix
from experiments.common.trial_table import METHOD, NULL, Found, Trial
from rml.nested import flatten
from rml.training import RunDirectory

CAPTIONS = {
    "arms.png": "Each arm's paired difference from the strongest baseline, with the 95% interval "
    "over seeds and units together; its mean stands beside it. Methods are filled, nulls coloured.",
    "cost.png": "Quality against the operations that training takes.",
    "curve.png": "Means along the budget, with their 95% intervals.",
    "groups.png": "Means by arm and group of units.",
}
"""A caption for each picture; a trial has those for which it has the numbers."""


def draw(trial: Trial, run: RunDirectory, rows: Sequence[Mapping[str, Any]], found: Found) -> None:
    """Draws what the trial has numbers for, each metric a panel of `arms.png`."""
    draw_arms(run.figure("arms.png"), rows)
    first = [row for row in rows if row["metric"] == rows[0]["metric"]]
    if len({row.get("gigaflops") for row in first}) > 1:
        draw_cost(run.figure("cost.png"), first)
    name = next(iter(trial.metrics))
    scores = found.values["test"][name]
    if trial.curve is not None:
        draw_curve(run.figure("curve.png"), trial, found, name)
    if trial.groups is not None and trial.metrics[name].shared:
        groups, means = matrix(trial, scores, found.config, found.bed)
        figures.heatmap(
            run.figure("groups.png"), means, [trial.arms[arm].says for arm in scores], groups,
            value_label=trial.metrics[name].says,
        )  # fmt: skip


def draw_arms(path: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws a panel a metric: the difference of each arm from the strongest baseline."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault(row["metric"], []).append(row)
    count = len(next(iter(panels.values())))
    height = 0.75 + 0.19 * count
    with canvas(path, (1.9 + 2.0 * len(panels), height)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (says, own) in zip(axes, panels.items(), strict=True):
            for place, row in enumerate(own):
                colour = look({METHOD: 0, NULL: 3}.get(row["role"], 7), "color")["color"]
                ends = [row["difference_low"], row["difference_high"]]
                if None not in ends:
                    ax.plot(ends, [place, place], "-", color=colour, linewidth=1.3)
                fill = colour if row["role"] == METHOD else "white"
                ax.plot(
                    row["difference"], place, "o", color=colour, markersize=4.5,
                    markerfacecolor=fill,
                )  # fmt: skip
                ax.annotate(
                    f"{row['mean']:.3g}", (1.02, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize=6.5,
                )  # fmt: skip
            ax.axvline(0, color="#333333", ls="--", lw=0.8, zorder=0)
            over = shorten(next(row["says"] for row in own if row["name"] == own[0]["over"]), 40)
            ax.set_xlabel(f"{says}, difference from\n{over}", fontsize=7)
            ax.grid(visible=True, axis="x")
            ax.locator_params(axis="x", nbins=4)
            ax.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(count), [shorten(row["says"], 38) for row in rows[:count]])
        axes[0].set_ylim(count - 0.5, -0.5)


def draw_cost(path: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws each arm's mean against the operations of its training."""
    with canvas(path, (COLUMN, 0.72 * COLUMN)) as figure:
        ax = figure.add_subplot()
        for index, row in enumerate(row for row in rows if row.get("gigaflops")):
            ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            ax.errorbar(
                row["gigaflops"], row["mean"], yerr=ends if row["low"] is not None else None,
                label=shorten(row["says"], 30), markersize=4.5, ls="none", elinewidth=0.8,
                **look(index, "color", "marker"),
            )  # fmt: skip
        ax.set(xscale="log", xlabel="GFLOPs of a run's training", ylabel=rows[0]["metric"])
        ax.grid(visible=True)
        figures.legend(ax, len(rows))


def draw_curve(path: Any, trial: Trial, found: Found, name: str) -> None:
    """Draws a line a family of arms along the key of the trial's curve."""
    assert trial.curve is not None
    base = flatten(found.config.to_dict())
    lines: dict[str, list[tuple[float, ...]]] = {}
    for arm, scores in found.values["test"][name].items():
        row = trial.arms[arm]
        if row.family:
            place = float(row.changes.get(trial.curve.key, base.get(trial.curve.key)))
            own = effect(trial.metrics[name], scores).interval
            lines.setdefault(row.family, []).append((place, *own[:3]))
    series = {family: list(np.array(sorted(points)).T) for family, points in lines.items()}
    figures.curves(path, series, trial.curve.says, trial.metrics[name].says, above=True)
