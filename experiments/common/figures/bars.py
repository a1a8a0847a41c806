"""Figures of results by group: bars, dots with intervals, and tables."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from experiments.common.figures.canvas import (
    COLUMN,
    PALETTE,
    PITCH,
    File,
    canvas,
    legend,
    look,
    shorten,
)

ROWS = 30  # more groups than stand side by side
PANELS = 4  # most of one line


def bars(
    path: File, groups: Sequence[str], values: Mapping[str, ArrayLike],
    errors: Mapping[str, ArrayLike] | None = None, ylabel: str = "", xlabel: str = "",
    title: str | None = None, reference: tuple[str, float] | None = None,
    decimals: int | None = None, cut: bool = False,
) -> None:  # fmt: skip
    """Draws groups of bars, one bar a series, with values above them and error bars if known.

    `values` and `errors`, half-widths, map a series to one number a group; non-finite values leave
    no bar. `reference` is the name and height of a dashed line, e.g. `("chance", 0.1)`, from which
    the bars grow. More than 24 bars carry values only if their `decimals` are given. If the axis of
    values is `cut`, it begins at a round number below the lowest end, so that differences show.
    Many groups stand below one another.
    """
    if not groups or not values:
        raise ValueError("bars needs at least one group and one series")
    heights = {name: np.asarray(v, float) for name, v in values.items()}
    halves = {name: np.asarray(v, float) for name, v in (errors or {}).items()}
    for name, given in [*heights.items(), *halves.items()]:
        if given.shape != (len(groups),) or name not in heights:
            raise ValueError(
                f"bars series {name!r} needs values, {len(groups)} as groups, got {given.shape}"
            )
    ends = [height - np.nan_to_num(halves.get(name, 0.0)) for name, height in heights.items()]
    floor = reference[1] if reference is not None else _floor(np.concatenate(ends)) if cut else 0.0
    text = {name: [_short(v, decimals) for v in height] for name, height in heights.items()}
    count, width = len(heights) * len(groups), 0.8 / len(heights)
    rows = len(groups) > ROWS
    size = (float(np.clip(0.28 * count + 0.8, COLUMN, 7.2)), 0.72 * COLUMN)
    points = 5.5 if count > 10 else 6.5
    pitch = 0.8 * size[0] / len(groups)  # the axes take 0.8 of the figure
    if rows:
        pitch = max(0.07, PITCH * len(heights))
        size = (1.6 * COLUMN, 0.8 + pitch * len(groups) + 0.12 * len(heights))
    longest = max(len(t) for row in text.values() for t in row)
    upright = not rows and 0.62 * points * longest > 72 * pitch * width
    with canvas(path, size, title) as figure:
        ax = figure.add_subplot()
        for index, (name, height) in enumerate(heights.items()):
            draw, start, thick, error = (
                (ax.barh, "left", "height", "xerr") if rows else (ax.bar, "bottom", "width", "yerr")
            )
            drawn = draw(
                np.arange(len(groups)) + (index - (len(heights) - 1) / 2) * width, height - floor,
                label=name, edgecolor="white", linewidth=0.0, **look(index, "color", "hatch"),
                error_kw={"elinewidth": 0.9, "capsize": 0 if rows else 2, "ecolor": "#222222"},
                **{start: floor, thick: width * 0.94, error: halves.get(name)},
            )  # fmt: skip
            if count <= 24 or decimals is not None:
                size_ = min(points, 72 * 0.9 * pitch * width) if rows else points
                ax.bar_label(drawn, text[name], padding=1.5, fontsize=size_, rotation=90 * upright)
        if reference is not None:
            line = ax.axvline if rows else ax.axhline
            line(reference[1], label=reference[0], color="#333333", ls="--", lw=0.9)
        if rows:
            ax.set_yticks(
                range(len(groups)), [shorten(group, 44) for group in groups],
                fontsize=min(7.0, 72 * 0.9 * pitch),
            )  # fmt: skip
            ax.set_ylim(len(groups) - 0.5, -0.5)
            ax.set(ylabel=xlabel, xlabel=ylabel)
        else:
            named = [shorten(group, 32) for group in groups]
            met = max((len(one) + len(other) for one, other in pairwise(named)), default=0)
            crowded = sum(map(len, named)) > 17 * size[0] or 0.028 * met > pitch
            slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            ax.set_xticks(range(len(groups)), named, **slanted)
            ax.set(xlabel=xlabel, ylabel=ylabel)
        along, across = ("y", "x") if rows else ("x", "y")
        ax.tick_params(axis=along, length=0)
        ax.grid(visible=True, axis=across)
        ax.margins(**{across: 0.25 if upright else 0.12})
        if len(heights) > 1 or reference is not None:
            legend(ax, len(heights) + 1, above=True)


def dots(
    path: File, rows: Sequence[str], panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str = "", title: str | None = None, reference: float | None = None,
) -> None:  # fmt: skip
    """Draws a panel a series, side by side: a dot a row with its interval, all rows in one order.

    `panels` maps the name of a panel to its values and the half-widths of their intervals, one a
    row each. Every panel has a scale of its own; the highest value of each is filled, and a line
    leads down from it. What is not finite is left out. `reference` is the place of a dashed line in
    every panel.
    """
    found = {name: np.asarray(given, float) for name, given in panels.items()}
    if not rows or not found:
        raise ValueError("dots needs at least one row and one panel")
    for name, given in found.items():
        if given.shape != (2, len(rows)):
            raise ValueError(
                f"dots panel {name!r} needs values and half-widths, {len(rows)} each as rows, got "
                f"{given.shape}"
            )
    lines = -(-len(found) // PANELS)
    columns = -(-len(found) // lines)
    size = (1.1 + 1.5 * columns, lines * (0.45 + 0.15 * len(rows)) + 0.2)
    with canvas(path, size, title) as figure:
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        places = np.arange(len(rows))
        for ax, (name, (values, halves)) in zip(axes, found.items(), strict=False):
            ax.errorbar(
                values, places, xerr=np.nan_to_num(halves), fmt="none", elinewidth=0.9, capsize=0,
                ecolor="#555555",
            )  # fmt: skip
            best = np.isfinite(values) & (values == np.nanmax(values, initial=-np.inf))
            for kept, fill in ((~best, "white"), (best, PALETTE[0])):
                ax.plot(
                    values[kept], places[kept], "o", color=PALETTE[0], markerfacecolor=fill,
                    markersize=4,
                )  # fmt: skip
            if best.any():
                ax.axvline(values[best][0], color=PALETTE[0], lw=0.6, ls=":", zorder=0)
            if reference is not None:
                ax.axvline(reference, color="#333333", ls="--", lw=0.9)
            ax.set_title(name, fontsize=7.5)
            ax.set_yticks(places, [shorten(row, 32) for row in rows])
            ax.tick_params(axis="y", length=0)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(visible=True, axis="both")
        for ax in axes[len(found) :]:
            ax.remove()
        figure.supxlabel(xlabel, fontsize=8)


def table(
    path: File, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]],
    best: Sequence[int | None] | None = None, title: str | None = None,
) -> None:  # fmt: skip
    """Draws a table of text with rules between its rows.

    Names may have several lines. `best` gives each column the index of its row in bold, or None,
    see `parted`.
    """
    best = [None] * len(columns) if best is None else best
    sizes = [len(row) for row in (best, *cells)]
    if not rows or not columns or sizes != [len(columns)] * (1 + len(rows)):
        raise ValueError(
            f"table needs best and {len(rows)} rows of {len(columns)} columns, got sizes {sizes}"
        )
    lines = [["", *columns], *([name, *row] for name, row in zip(rows, cells, strict=True))]
    widths = [
        0.2 + 0.062 * max(len(part) for text in column for part in text.split("\n"))
        for column in zip(*lines, strict=True)
    ]
    tall = 1 + np.array([max(text.count("\n") for text in line) for line in lines])
    size = (sum(widths), 0.19 * float(tall.sum()) + 0.15 + 0.2 * bool(title))
    with canvas(path, size, title) as figure:
        ax = figure.add_subplot()
        ax.axis("off")
        drawn = ax.table(lines, colWidths=widths, bbox=(0, 0, 1, 1), edges="horizontal")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7.5)
        for (i, j), cell in drawn.get_celld().items():
            cell.set(linewidth=0.4, height=tall[i])
            bold = i > 0 < j and best[j - 1] == i - 1
            cell.set_text_props(ha="center" if j else "left", weight="bold" if bold else "normal")


def parted(means: ArrayLike, halves: ArrayLike) -> int | None:
    """The index of the highest mean `[n]`, None if its interval meets that of another.

    `halves` are half-widths of the intervals; one that is not finite is unknown and meets all.
    """
    center, half = np.asarray(means, float), np.asarray(halves, float)
    if center.shape != half.shape or center.ndim != 1 or not len(center):
        raise ValueError(
            f"parted expects means and halves [n], n at least 1, got {center.shape}, {half.shape}"
        )
    first = int(np.argmax(center))
    others = np.arange(len(center)) != first
    apart = center[first] - half[first] > (center + half)[others]
    return first if bool(apart.all()) else None


def _floor(ends: np.ndarray) -> float:
    """A round number below positive ends; zero for others, or where they do not differ."""
    ends = ends[np.isfinite(ends)]
    if not ends.size or not 0 < ends.min() < ends.max():
        return 0.0
    step = 10.0 ** np.floor(np.log10(np.ptp(ends)))
    return max(0.0, float(np.floor(ends.min() / step - 0.5) * step))


def _short(value: float, decimals: int | None) -> str:
    if not np.isfinite(value):
        return ""
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    if 100 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.2f}" if 0.01 <= abs(value) < 100 else f"{value:.2g}"
