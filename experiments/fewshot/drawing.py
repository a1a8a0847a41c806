"""Figures of few-shot results: accuracies, a search, energies, an episode, clusters."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics.cluster import contingency_matrix

from experiments.common import figures
from experiments.fewshot.common import SHIFTED
from rml.fewshot import TITLES, Picture, Search, Setting

Folder = Callable[[str], Path]
Table = Mapping[Setting, Mapping[str, tuple[float, float]]]
ROWS = {**TITLES, SHIFTED: "SimpleShot, shifted"}


def draw_accuracies(folder: Folder, table: Table, *, over: str) -> None:
    """Draws all accuracies: as a table, and as dots for balanced and imbalanced queries.

    Args:
      folder: Where each figure is written.
      table: Accuracy and half its interval by kind of episodes and method.
      over: What the intervals are over, for the axis.
    """
    methods = [ROWS[name] for name in next(iter(table.values()))]
    columns = {s: 100 * np.array(list(column.values())) for s, column in table.items()}
    titles = {s: s.title.replace(", ", "\n") for s in table}  # panels and columns are narrow
    texts = [[f"{mean:.2f} ± {half:.2f}" for mean, half in column] for column in columns.values()]
    figures.table(
        folder("table.png"), methods, list(titles.values()),
        list(zip(*texts, strict=True)),
        best=[figures.parted(c[:, 0], c[:, 1]) for c in columns.values()],
    )  # fmt: skip
    for balanced, name in ((True, "accuracy.png"), (False, "accuracy_imbalanced.png")):
        shown = {titles[s]: c for s, c in columns.items() if (s.concentration is None) == balanced}
        if shown:
            panels = {title: (c[:, 0], c[:, 1]) for title, c in shown.items()}
            figures.dots(folder(name), methods, panels, f"accuracy (%), 95% interval over {over}")


def draw_search(folder: Folder, search: Search, title: str) -> None:
    """Draws validation accuracy against λ, a line a number of neighbours; bands: 95% intervals."""
    axes = ("neighbors", "laplacian_weight")
    if any(name not in search.candidates for name in axes):
        return
    mean, half = (100 * part for part in search.along(*axes))
    weights = np.array(search.candidates["laplacian_weight"])
    series = {
        f"{k} neighbours": (weights, mean[i], mean[i] - half[i], mean[i] + half[i])
        for i, k in enumerate(search.candidates["neighbors"])
    }
    figures.curves(folder("search.png"), series, "λ", "validation accuracy (%)", title=title)


def draw_energy(folder: Folder, courses: Mapping[float, np.ndarray]) -> None:
    """Draws the energy's fall from its start: mean over episodes, band of one deviation."""
    moving = max(int((e[:, 1:] != e[:, :-1]).sum(axis=1).max()) for e in courses.values())
    steps = np.arange(moving + 1)  # the rest is flat
    series = {}
    for weight, energies in courses.items():
        fall = (energies - energies[:, :1])[:, : len(steps)]
        mean, deviation = fall.mean(axis=0), fall.std(axis=0)
        series[f"λ = {weight:g}"] = (steps, mean, mean - deviation, mean + deviation)
    figures.curves(folder("energy.png"), series, "iteration", "energy less its start")


def draw_picture(folder: Folder, shown: Picture) -> None:
    """Draws an episode before and after: marker and colour by assigned class, errors ringed."""
    queries = np.arange(len(shown.labels)) >= shown.support
    named = {"nearest class mean": shown.before, "regularised clustering": shown.after}
    with figures.canvas(folder("assignments.png"), (7.0, 3.4)) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, (name, found) in zip(panels, named.items(), strict=True):
            for c in np.unique(shown.labels):
                look = figures.look(int(c), "color", "marker")
                own, support = queries & (found == c), ~queries & (shown.labels == c)
                axes.scatter(*shown.xy[own].T, s=16, alpha=0.75, linewidths=0, **look)
                axes.scatter(*shown.xy[support].T, s=90, edgecolors="black", linewidths=1, **look)
            wrong = queries & (found != shown.labels)
            ring = {"facecolors": "none", "edgecolors": "#333333", "linewidths": 0.8}
            axes.scatter(*shown.xy[wrong].T, s=60, **ring)
            right = np.mean(found[queries] == shown.labels[queries])
            axes.set_title(f"{name}: {100 * right:.0f}% right")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("first principal component")
        panels[0].set_ylabel("second principal component")
        note = "large: support; small: queries by assigned class; ring: wrong class"
        figure.supxlabel(note, fontsize=7)


def draw_clusters(folder: Folder, clusters: ArrayLike, classes: ArrayLike) -> None:
    """Draws how many points of each class fall into each cluster, 25 at most of both."""
    table = contingency_matrix(np.asarray(clusters), np.asarray(classes))
    table = table[np.lexsort((-table.max(axis=1), table.argmax(axis=1)))][:25, :25]
    figures.heatmap(
        folder("clusters.png"), table.T, xlabel="cluster", ylabel="class", value_label="points"
    )
