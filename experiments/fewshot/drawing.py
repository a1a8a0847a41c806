"""Figures of few-shot results: the table, bars with intervals, searches, energies, an episode."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures
from experiments.fewshot.episodes import Search, Setting
from experiments.fewshot.trajectory import Picture

Folder = Callable[[str], Path]
Table = Mapping[Setting, Mapping[str, tuple[float, float]]]
LABELS = {
    "simple_shot": "SimpleShot",
    "soft_kmeans": "soft K-means",
    "hard_kmeans": "hard K-means",
    "k_modes": "K-modes",
    "laplacian_shot": "LaplacianShot",
    "transductive_clustering": "regularised (full)",
    "tim": "TIM-GD",
    "tim_adm": "TIM-ADM",
    "alpha_tim": "α-TIM",
    "bd_cspn": "BD-CSPN",
    "pt_map": "PT-MAP",
    "label_propagation": "label propagation",
}


@contextmanager
def canvas(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure in the house style, saved when it has been drawn."""
    with figures.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, format="png", dpi=figures.DPI, metadata={"Software": None})


def draw_table(folder: Folder, table: Table) -> None:
    """Figures of all accuracies: as a table, and as bars for balanced and imbalanced queries."""
    settings = list(table)
    methods = list(table[settings[0]])
    cells = [
        [f"{100 * table[s][m][0]:.2f} ± {100 * table[s][m][1]:.2f}" for s in settings]
        for m in methods
    ]
    best = [max(column, key=lambda m: column[m][0]) for column in table.values()]
    height = 0.19 * (len(methods) + 2) + 0.15
    with canvas(folder("table.png"), (1.5 + 1.35 * len(settings), height)) as figure:
        axes = figure.add_subplot()
        axes.axis("off")
        drawn = axes.table(
            cells, loc="center", cellLoc="center", edges="horizontal",
            rowLabels=[LABELS.get(m, m) for m in methods],
            colLabels=[s.title.replace(", ", "\n") for s in settings],
        )  # fmt: skip
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7.5)
        for (row, column), cell in drawn.get_celld().items():
            cell.set_linewidth(0.4)
            cell.set_height((2 if row == 0 else 1) / (len(methods) + 2))
            if row > 0 and column >= 0 and methods[row - 1] == best[column]:
                cell.get_text().set_fontweight("bold")
    for balanced, name in ((True, "accuracy.png"), (False, "accuracy_imbalanced.png")):
        shown = [s for s in settings if (s.concentration is None) == balanced]
        if shown:
            draw_bars(folder(name), {s: table[s] for s in shown}, methods)


def draw_bars(path: Path, table: Table, methods: Sequence[str]) -> None:
    """Figure of accuracies with their 95% intervals, a group a method and a bar a kind of episodes.

    The axis is cut where no bar ends, so that differences show.
    """
    count, width = len(table), 0.8 / len(table)
    low = min(mean - half for column in table.values() for mean, half in column.values())
    floor = max(0.0, np.floor(10 * low - 0.5) * 10)
    with canvas(path, (max(figures.COLUMN, 0.55 * len(methods)), 2.7)) as figure:
        axes = figure.add_subplot()
        for index, (setting, column) in enumerate(table.items()):
            mean, half = (100 * np.array([column[m][i] for m in methods]) for i in (0, 1))
            place = np.arange(len(methods)) + (index - (count - 1) / 2) * width
            axes.bar(
                place, mean - floor, 0.94 * width, bottom=floor, yerr=half, label=setting.title,
                color=figures.PALETTE[index], hatch=figures.HATCHES[index % len(figures.HATCHES)],
                edgecolor="white", linewidth=0.0,
                error_kw={"elinewidth": 0.9, "capsize": 1.5, "ecolor": "#222222"},
            )  # fmt: skip
            for at, value, reach in zip(place, mean, half, strict=True):
                axes.text(at, value + reach + 0.3, f"{value:.1f}", fontsize=5, ha="center")
        axes.set_ylim(bottom=floor)
        axes.margins(y=0.1)
        axes.set_xticks(range(len(methods)), [LABELS.get(m, m) for m in methods])
        axes.tick_params(axis="x", length=0, labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        axes.set_ylabel("accuracy (%), 95% interval")
        axes.grid(visible=True, axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.3)


def draw_search(folder: Folder, search: Search | None, setting: Setting) -> None:
    """Figure of validation accuracy against λ, a line a number of neighbours.

    Other options that were searched are at their best for each point; bands are 95% intervals.
    """
    axes = ("neighbors", "laplacian_weight")
    if search is None or any(name not in search.values for name in axes):
        return
    names = list(search.values)
    others = tuple(i for i, name in enumerate(names) if name not in axes)
    size = [len(search.values[name]) for name in axes]
    kept = [names.index(name) for name in axes]
    mean, half = (
        table.transpose(*kept, *others).reshape(*size, -1)
        for table in (search.accuracies, search.intervals)
    )
    best = mean.argmax(axis=2)[..., None]
    mean, half = (100 * np.take_along_axis(table, best, axis=2)[..., 0] for table in (mean, half))
    weights = np.array(search.values["laplacian_weight"])
    figures.curves(
        folder("search.png"),
        {
            f"{k} neighbours": (weights, mean[i], mean[i] - half[i], mean[i] + half[i])
            for i, k in enumerate(search.values["neighbors"])
        },
        "λ",
        "validation accuracy (%)",
        title=setting.title,
    )


def draw_energy(folder: Folder, courses: Mapping[float, np.ndarray]) -> None:
    """Figure of the energy's fall from its start: mean over episodes, band of one deviation."""
    moving = max(int((e[:, 1:] != e[:, :-1]).sum(axis=1).max()) for e in courses.values())
    steps = np.arange(moving + 1)  # the rest is flat
    series = {}
    for weight, energies in courses.items():
        fall = (energies - energies[:, :1])[:, : len(steps)]
        mean, deviation = fall.mean(axis=0), fall.std(axis=0)
        series[f"λ = {weight:g}"] = (steps, mean, mean - deviation, mean + deviation)
    figures.curves(folder("energy.png"), series, "iteration", "energy less its start")


def draw_picture(folder: Folder, shown: Picture) -> None:
    """Figure of an episode before and after: marker and colour by assigned class, errors ringed."""
    names = "nearest class mean", "regularised clustering"
    queries = np.arange(len(shown.labels)) >= shown.support
    with canvas(folder("assignments.png"), (7.0, 3.4)) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, name, found in zip(panels, names, (shown.before, shown.after), strict=True):
            for c in np.unique(shown.labels):
                own = queries & (found == c)
                style = {
                    "color": figures.PALETTE[c % len(figures.PALETTE)],
                    "marker": figures.MARKERS[c % len(figures.MARKERS)],
                }
                axes.scatter(*shown.xy[own].T, s=16, alpha=0.75, linewidths=0, **style)
                support = ~queries & (shown.labels == c)
                axes.scatter(*shown.xy[support].T, s=90, edgecolors="black", linewidths=1, **style)
            wrong = queries & (found != shown.labels)
            axes.scatter(
                *shown.xy[wrong].T, s=60, facecolors="none", edgecolors="#333333", linewidths=0.8
            )
            right = np.mean(found[queries] == shown.labels[queries])
            axes.set_title(f"{name}: {100 * right:.0f}% right")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("first principal component")
        panels[0].set_ylabel("second principal component")
        figure.supxlabel(
            "large: support; small: queries by assigned class; ring: wrong class", fontsize=7
        )
