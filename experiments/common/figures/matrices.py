"""Figures of matrices: shades, and the tree of a similarity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiments.common.figures.canvas import (  # fmt: skip
    COLUMN,
    CROWD,
    PALETTE,
    PITCH,
    WRITTEN,
    File,
    Names,
    canvas,
    check_labels,
    names_along,
    shorten,
)


def heatmap(
    path: File, matrix: ArrayLike, labels: Names = None, column_labels: Names = None,
    xlabel: str = "", ylabel: str = "", title: str | None = None, value_label: str = "",
    diverging: bool = False, gap: int = 1,
) -> None:  # fmt: skip
    """Draws a matrix as shades with a scale; a small one also carries its numbers.

    Matrices `[m, rows, columns]` stand side by side without numbers, `gap` columns apart, each with
    its name of `column_labels`. `labels` name rows, and of a square matrix also columns, unless
    `column_labels` are given. `value_label`
    says beside the scale what the values are. The middle of a `diverging` scale is zero.
    """
    values = np.asarray(matrix, float)
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"heatmap expects a matrix [(m,) rows, columns], got shape {values.shape}")
    count, names_at = values.shape[-1], None
    if several := values.ndim == 3:
        count = len(values)
        names_at = (values.shape[2] - 1) / 2 + np.arange(count) * (values.shape[2] + gap)
        padded = np.pad(values, ((0, 0), (0, 0), (0, gap)), constant_values=np.nan)
        values = np.hstack(list(padded))[:, : -gap or None]
    rows, columns = values.shape
    if column_labels is None and rows == columns and not several:
        column_labels = labels
    check_labels("labels", labels, rows)
    check_labels("column_labels", column_labels, count)
    finite = values[np.isfinite(values)]
    extreme = float(np.abs(finite).max()) if finite.size else 1.0
    limits = {"vmin": -extreme, "vmax": extreme} if diverging and extreme > 0 else {}
    least = 1.2 if labels is None else max(1.2, 0.6 + 0.13 * min(rows, 25))  # room for the labels
    height = float(np.clip(0.8 * COLUMN * rows / columns, least, 2 * COLUMN))
    if labels is not None and rows > CROWD:
        height = max(height, PITCH * min(rows, WRITTEN) + 1.2)
    width = COLUMN
    if column_labels is not None and columns > CROWD and not several:
        width = PITCH * min(columns, WRITTEN) + 1.6
    with canvas(path, (max(COLUMN, width), height), title) as figure:
        ax = figure.add_subplot()
        shades = "RdBu_r" if diverging else "cividis"
        shown = ax.imshow(values, cmap=shades, aspect="auto", **limits)
        for axis, names in ((ax.xaxis, column_labels), (ax.yaxis, labels)):
            if names is not None and not (several and axis is ax.xaxis):
                names_along(axis, names)
        if several and column_labels is not None:
            ax.set_xticks(names_at, column_labels)
        elif column_labels is not None and max(map(len, column_labels)) * columns > 40:
            ax.tick_params(axis="x", labelrotation=90)
        ax.tick_params(length=0)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.spines[:].set_visible(False)
        if rows * columns <= 144 and columns <= 12 and not several:
            whole = (finite == finite.round()).all() or (extreme >= 10 and columns > 6)
            form = ("{:.0f}" if whole else "{:.1f}" if extreme >= 10 else "{:.2f}").format
            if extreme >= 1000 or (extreme < 0.1 and finite.any()):
                form = "{:.1e}".format
            font = {"ha": "center", "va": "center", "fontsize": 6 if columns <= 8 else 5}
            for (i, j), value in np.ndenumerate(values):
                red, green, blue, _ = shown.cmap(shown.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = form(value) if np.isfinite(value) else "–"
                ax.text(j, i, text, color="white" if dark else "black", **font)
        bar = figure.colorbar(
            shown,
            ax=ax,
            label=value_label,
            fraction=0.05 * COLUMN / figure.get_figwidth(),
            pad=0.02,
        )
        bar.outline.set_visible(False)


def dendrogram(
    path: File, similarity: ArrayLike, names: Sequence[str],
    ylabel: str = "1 - similarity / largest", title: str | None = None,
) -> list[int]:  # fmt: skip
    """Draws the tree of average linkage of a symmetric similarity `[n, n]`.

    A pair's distance is one less its share of the largest value; negative values count as zero.
    Many leaves stand below one another, and past `WRITTEN` have no names. Returns the rows in the
    order of the leaves, by which a heat map shows the groups.
    """
    values = np.asarray(similarity, float)
    square = len(names) > 1 and values.shape == (len(names),) * 2
    if not (square and np.allclose(values, values.T) and values.max() > 0):
        raise ValueError(
            f"dendrogram expects a symmetric, finite similarity [n, n] with positive values and n "
            f"names, two or more, got {len(names)} names and {values}"
        )
    distance = np.minimum(1 - values / values.max(), 1)
    np.fill_diagonal(distance, 0.0)
    from scipy.cluster import hierarchy  # slow to import
    from scipy.spatial.distance import squareform

    tree = hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    many = len(names) > CROWD
    written = len(names) <= WRITTEN
    size = (1.3 * COLUMN, 0.8 + PITCH * min(len(names), WRITTEN)) if many else (COLUMN, 2.4)
    with canvas(path, size, title) as figure:
        ax = figure.add_subplot()
        order = hierarchy.dendrogram(
            tree, labels=[shorten(name, 44 if many else 28) for name in names], ax=ax,
            color_threshold=0, above_threshold_color=PALETTE[0], no_labels=not written,
            orientation="left" if many else "top",
            leaf_font_size=72 * 0.95 * PITCH if many else 7,
            leaf_rotation=90 if not many and sum(map(len, names)) > 40 else 0,
        )["leaves"]  # fmt: skip
        for lines in ax.collections:
            lines.set_linewidth(0.6 if many else 1.2)
        if many:
            ax.tick_params(axis="y", length=0, pad=1)
            ax.set_xlabel(ylabel)
        else:
            ax.set_ylabel(ylabel)
    return order
