"""Figures for papers and reports: one house style, one function a kind of figure, each saves a PNG.

Every figure reads in grey and with any colour vision: series differ by colour, line style and
marker; bars by hatching; classes by marker and by their name written on the cluster. Matplotlib is
imported when a figure is drawn, so importing this module costs nothing, and `pyplot` is never used,
so no figure stays in memory and no backend or display is chosen for the caller.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

COLUMN = 3.5  # inches: the width of one column of a two-column paper
DPI = 200
# Okabe and Ito's palette, dark and light in turn; grey for their yellow, which is faint on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9", "#7F7F7F")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----")

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "image.interpolation": "nearest",
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The house style as a context: afterwards Matplotlib's parameters are the caller's own."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def curves(
    path: str | Path,
    series: Mapping[str, Sequence[ArrayLike]],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    logy: bool = False,
) -> None:
    """Lines over a common horizontal axis, with a band where lower and upper bounds are given.

    Args:
      path: The PNG to write.
      series: Name to `(x, y)` or `(x, y, low, high)`, each `[n]`; gaps where not finite.
      xlabel: Horizontal axis with its unit, e.g. "step" or "time (s)".
      ylabel: Vertical axis with its unit.
      title: Above the figure.
      logy: Whether the vertical axis is logarithmic.

    Raises:
      ValueError: No series, or one whose parts are not 2 or 4 sequences of one length.
    """
    if not series:
        raise ValueError("curves needs at least one series, got none")
    checked = {name: _checked_series(name, parts) for name, parts in series.items()}
    with _figure(path, title, (COLUMN, 0.68 * COLUMN)) as figure:
        ax = figure.add_subplot()
        for index, (name, (x, y, *band)) in enumerate(checked.items()):
            colour = PALETTE[index % len(PALETTE)]
            ax.plot(
                x,
                y,
                label=name,
                color=colour,
                linestyle=LINES[index % len(LINES)],
                marker=MARKERS[index % len(MARKERS)],
                markevery=_marks(len(x), index, len(checked)),
                markeredgecolor="white",
                markeredgewidth=0.4,
            )
            if band:
                ax.fill_between(x, band[0], band[1], color=colour, alpha=0.18, linewidth=0)
        if logy:
            ax.set_yscale("log")
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(visible=True)
        ax.margins(x=0.02)
        _legend(ax, len(checked))


def image_grid(
    path: str | Path,
    rows_of_images: Sequence[Sequence[ArrayLike]] | ArrayLike,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Rows of images, by custom the original first and its views after it.

    Args:
      path: The PNG to write.
      rows_of_images: Rows of images `[h, w]`, `[h, w, 1]` or `[h, w, 3]`: uint8, or
        floats in [0, 1] (what noise pushes past the ends is clipped). Rows may differ in length
        and images in size.
      row_labels: One a row.
      column_labels: One a column.
      title: Above the figure.

    Raises:
      ValueError: No images, an image of another shape, values that are not in [0, 1] (normalised
        images, say), or labels that do not match the rows or columns.
    """
    rows = [[_image(image) for image in row] for row in rows_of_images]  # type: ignore[union-attr]
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("image_grid needs at least one image, got none")
    _check_labels("row_labels", row_labels, len(rows))
    _check_labels("column_labels", column_labels, columns)
    cell = min(0.85, 7.0 / columns)
    aspect = float(np.mean([image.shape[0] / image.shape[1] for row in rows for image in row]))
    longest = max((len(label) for label in row_labels or ()), default=0)
    size = (
        max(cell * columns + 0.07 * longest + 0.1, 0.08 * len(title or "")),
        cell * aspect * len(rows) + 0.2 + 0.2 * bool(title) + 0.15 * bool(column_labels),
    )
    with _figure(path, title, size) as figure:
        figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0.0, hspace=0.0)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for i, row in enumerate(rows):
            for j in range(columns):
                ax = axes[i, j]
                ax.set_xticks([])
                ax.set_yticks([])
                for spine in ax.spines.values():
                    spine.set_visible(False)
                if j < len(row):
                    ax.imshow(row[j], cmap="gray", vmin=0.0, vmax=1.0)
                if i == 0 and column_labels is not None:
                    ax.set_title(column_labels[j], fontsize=7, pad=3)
                if j == 0 and row_labels is not None:
                    ax.set_ylabel(
                        row_labels[i], rotation=0, ha="right", va="center", fontsize=7, labelpad=4
                    )


def embedding(
    path: str | Path,
    xy: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    title: str | None = None,
) -> None:
    """A map of examples in the plane: each class has a colour, a marker and its name at its median.

    Args:
      path: The PNG to write.
      xy: Positions `[n, 2]`; no axis of such a map has a unit, so none is drawn.
      labels: Integer classes `[n]`, indices of `class_names`.
      class_names: Names of all classes; those without examples are left out.
      title: Above the figure.

    Raises:
      ValueError: Shapes that do not match, or a label without a name.
    """
    from matplotlib import patheffects

    points, classes = np.asarray(xy, float), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or classes.shape != points.shape[:1]:
        raise ValueError(
            f"embedding expects xy [n, 2] and labels [n], got {points.shape} and {classes.shape}"
        )
    if not len(points) or classes.min() < 0 or classes.max() >= len(class_names):
        raise ValueError(
            f"embedding expects at least one example and labels in [0, {len(class_names)}), got "
            f"{len(points)} examples with labels {sorted(set(classes.tolist()))[:10]}"
        )
    present = np.unique(classes)
    members = [points[(classes == c) & np.isfinite(points).all(1)] for c in present]
    medians = np.array([np.median(m, 0) if len(m) else (np.nan, np.nan) for m in members])
    area = float(np.clip(12000 / len(points), 3, 16))
    with _figure(path, title, (COLUMN, COLUMN)) as figure:
        ax = figure.add_subplot()
        for index, (c, member) in enumerate(zip(present, members, strict=True)):
            ax.scatter(
                *member.T,
                s=area,
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[index % len(MARKERS)],
                alpha=0.65,
                linewidths=0,
                label=class_names[c],
            )
        span = np.nanmax(points, 0) - np.nanmin(points, 0)
        places = _spread(medians, np.where(span > 0, span, 1.0) * (0.10, 0.05))
        for c, place in zip(present, places, strict=True):
            if np.isfinite(place).all():
                ax.annotate(
                    class_names[c],
                    place,
                    ha="center",
                    va="center",
                    fontsize=8 if len(present) <= 20 else 6,
                    fontweight="bold",
                    path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
                )
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_aspect("equal", adjustable="datalim")
        for spine in ax.spines.values():
            spine.set_visible(True)
            spine.set_color("#BBBBBB")


def spectrum(
    path: str | Path,
    singular_values: Mapping[str, ArrayLike],
    effective_ranks: Mapping[str, float] | None = None,
    title: str | None = None,
    ylabel: str = "singular value / largest",
) -> None:
    """Singular values over their index, divided by the largest: a cliff is dimensional collapse.

    Args:
      path: The PNG to write.
      singular_values: Name to non-negative values `[d]`, e.g. trained against untrained.
      effective_ranks: Name to effective rank, written in the legend.
      title: Above the figure.
      ylabel: Vertical axis.

    Raises:
      ValueError: No spectrum, one without a positive value, or with negative or non-finite ones.
    """
    if not singular_values:
        raise ValueError("spectrum needs at least one spectrum, got none")
    series = {}
    for name, given in singular_values.items():
        values = np.sort(np.asarray(given, float).ravel())[::-1]
        if not (len(values) and np.isfinite(values).all() and values[0] > 0 and values[-1] >= 0):
            raise ValueError(
                f"spectrum {name!r} expects finite, non-negative singular values, not all zero"
            )
        rank = (effective_ranks or {}).get(name)
        label = name if rank is None else f"{name} (effective rank {rank:.3g} of {len(values)})"
        # Below float32 rounding a value is noise, and zeros have no logarithm.
        series[label] = (np.arange(1, len(values) + 1), np.maximum(values / values[0], 1e-8))
    curves(path, series, "index of singular value", ylabel, title, logy=True)


def heatmap(
    path: str | Path,
    matrix: ArrayLike,
    labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    value_label: str = "",
    diverging: bool = False,
) -> None:
    """A matrix as shades with a scale; small matrices also carry their numbers.

    Args:
      path: The PNG to write.
      matrix: Values `[rows, columns]`.
      labels: One a row; of a square matrix also the columns', unless `column_labels` is given.
      column_labels: One a column.
      xlabel: What columns are.
      ylabel: What rows are.
      title: Above the figure.
      value_label: What the values are, with their unit, beside the scale.
      diverging: Whether zero is the middle of the scale (similarities, differences).

    Raises:
      ValueError: A matrix that is empty or not two-dimensional, or labels that do not match it.
    """
    values = np.asarray(matrix, float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"heatmap expects a matrix [rows, columns], got shape {values.shape}")
    rows, columns = values.shape
    if column_labels is None and rows == columns:
        column_labels = labels
    _check_labels("labels", labels, rows)
    _check_labels("column_labels", column_labels, columns)
    finite = values[np.isfinite(values)]
    extreme = float(np.abs(finite).max()) if finite.size else 1.0
    limits = {"vmin": -extreme, "vmax": extreme} if diverging and extreme > 0 else {}
    least = 1.2 if labels is None else max(1.2, 0.6 + 0.13 * min(rows, 25))  # room for the labels
    height = float(np.clip(0.8 * COLUMN * rows / columns, least, 2 * COLUMN))
    with _figure(path, title, (COLUMN, height)) as figure:
        ax = figure.add_subplot()
        shown = ax.imshow(
            values, cmap="RdBu_r" if diverging else "cividis", aspect="auto", **limits
        )
        for axis, names in ((ax.xaxis, column_labels), (ax.yaxis, labels)):
            if names is not None:
                every = math.ceil(len(names) / 25)
                axis.set_ticks(range(0, len(names), every), names[::every])
        if column_labels is not None and max(map(len, column_labels)) * columns > 40:
            ax.tick_params(axis="x", labelrotation=90)
        ax.tick_params(length=0)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        for spine in ax.spines.values():
            spine.set_visible(False)
        if rows * columns <= 144 and columns <= 12:
            form = ("{:.0f}" if (finite == finite.round()).all() else "{:.2f}").format
            if extreme >= 1000 or (extreme < 0.1 and finite.any()):
                form = "{:.1e}".format
            for (i, j), value in np.ndenumerate(values):
                red, green, blue, _ = shown.cmap(shown.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                ax.text(
                    j,
                    i,
                    form(value) if np.isfinite(value) else "–",
                    ha="center",
                    va="center",
                    fontsize=6 if columns <= 8 else 5,
                    color="white" if dark else "black",
                )
        figure.colorbar(
            shown, ax=ax, label=value_label, fraction=0.05, pad=0.02
        ).outline.set_visible(False)


def bars(
    path: str | Path,
    groups: Sequence[str],
    values: Mapping[str, ArrayLike],
    errors: Mapping[str, ArrayLike] | None = None,
    ylabel: str = "",
    xlabel: str = "",
    title: str | None = None,
    reference: tuple[str, float] | None = None,
) -> None:
    """Groups of bars, one bar a series, each with its value above it and its error bar if known.

    Args:
      path: The PNG to write.
      groups: Names along the horizontal axis.
      values: Series name to one value a group; non-finite values leave no bar.
      errors: Series name to half-widths, one a group (say in the caption what they are).
      ylabel: Vertical axis with its unit.
      xlabel: Horizontal axis.
      title: Above the figure.
      reference: Name and height of a dashed line, e.g. `("chance", 0.1)`.

    Raises:
      ValueError: No groups or series, or a series that does not have one value a group.
    """
    if not groups or not values:
        raise ValueError("bars needs at least one group and one series")
    heights = {name: np.asarray(v, float) for name, v in values.items()}
    halves = {name: np.asarray(v, float) for name, v in (errors or {}).items()}
    for name, given in [*heights.items(), *halves.items()]:
        if given.shape != (len(groups),) or name not in heights:
            raise ValueError(
                f"bars series {name!r} expects {len(groups)} values, one a group, and errors only "
                f"for series with values; got shape {given.shape}"
            )
    count = len(heights) * len(groups)
    width = 0.8 / len(heights)
    size = (float(np.clip(0.28 * count + 0.8, COLUMN, 7.2)), 0.72 * COLUMN)
    text = {k: [_short(h) if np.isfinite(h) else "" for h in v] for k, v in heights.items()}
    points = 5.5 if count > 10 else 6.5
    room = 72 * 0.8 * size[0] / len(groups) * width  # the axes take 0.8 of the figure
    upright = 0.62 * points * max(len(t) for row in text.values() for t in row) > room
    with _figure(path, title, size) as figure:
        ax = figure.add_subplot()
        for index, (name, height) in enumerate(heights.items()):
            drawn = ax.bar(
                np.arange(len(groups)) + (index - (len(heights) - 1) / 2) * width,
                height,
                width * 0.94,
                yerr=halves.get(name),
                label=name,
                color=PALETTE[index % len(PALETTE)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="white",
                linewidth=0.0,
                error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#222222"},
            )
            if count <= 24:
                ax.bar_label(drawn, text[name], padding=1.5, fontsize=points, rotation=90 * upright)
        if reference is not None:
            ax.axhline(
                reference[1], color="#333333", linestyle="--", linewidth=0.9, label=reference[0]
            )
        ax.set_xticks(range(len(groups)), groups)
        if sum(map(len, groups)) > 17 * size[0]:
            ax.tick_params(axis="x", labelrotation=30)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        ax.tick_params(axis="x", length=0)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(visible=True, axis="y")
        ax.margins(y=0.12)
        if len(heights) > 1 or reference is not None:
            _legend(ax, len(heights) + 1, above=True)


def histogram(
    path: str | Path,
    series: Mapping[str, ArrayLike],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
) -> None:
    """Outlines of the distributions of several samples, over common intervals.

    Args:
      path: The PNG to write.
      series: Name to a sample `[n]`; what is not finite is left out.
      xlabel: What is distributed, with its unit.
      ylabel: What is counted.
      title: Above the figure.

    Raises:
      ValueError: No series, or one without a finite value.
    """
    samples = {name: np.asarray(values, float).ravel() for name, values in series.items()}
    samples = {name: values[np.isfinite(values)] for name, values in samples.items()}
    if not samples or any(not len(values) for values in samples.values()):
        sizes = {name: len(values) for name, values in samples.items()}
        raise ValueError(f"histogram needs series with finite values, got {sizes}")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=30)
    with _figure(path, title, (COLUMN, 0.68 * COLUMN)) as figure:
        ax = figure.add_subplot()
        for index, (name, values) in enumerate(samples.items()):
            counts = np.histogram(values, edges)[0]
            style = {"color": PALETTE[index % len(PALETTE)], "label": name}
            ax.stairs(counts, edges, linestyle=LINES[index % len(LINES)], linewidth=1.3, **style)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(visible=True, axis="y")
        ax.margins(x=0.02)
        _legend(ax, len(samples))


@contextlib.contextmanager
def _figure(path: str | Path, title: str | None, size: tuple[float, float]) -> Iterator[Any]:
    """A figure in the house style, saved to `path` (its folder is made) once it has been drawn."""
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        yield figure
        if title:
            figure.suptitle(title, fontsize=9)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Without the metadata the bytes of equal figures are equal.
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _checked_series(name: str, parts: Sequence[ArrayLike]) -> list[np.ndarray]:
    arrays = [np.asarray(part, float) for part in parts]
    if len(arrays) not in (2, 4) or any(a.ndim != 1 or a.shape != arrays[0].shape for a in arrays):
        raise ValueError(
            f"series {name!r} expects (x, y) or (x, y, low, high), each of one length, got shapes "
            f"{[a.shape for a in arrays]}"
        )
    return arrays


def _marks(length: int, index: int, count: int) -> Any:
    """About eight markers a line, staggered so that coinciding lines do not hide one another."""
    if length <= 12:
        return 1
    every = math.ceil(length / 8)
    return (index * every // max(count, 1), every)


def _legend(ax: Any, count: int, above: bool = False) -> None:
    """A legend that hides no data: above the axes if large or `above`; none for one series."""
    handles, names = ax.get_legend_handles_labels()
    longest = max(map(len, names))
    if count == 1:
        return
    if above or count > 6 or longest > 24:
        columns = max(1, min(3, len(names), 46 // (longest + 8)))
        ax.legend(
            handles,
            names,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            borderaxespad=0.3,
        )
    else:
        ax.legend(loc="best")


def _image(image: ArrayLike) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise ValueError(
            f"an image must be [h, w], [h, w, 1] or [h, w, 3], got shape {pixels.shape}"
        )
    values = pixels / 255.0 if pixels.dtype == np.uint8 else np.asarray(pixels, np.float64)
    clipped = np.clip(np.nan_to_num(values), 0.0, 1.0)
    if float(np.mean(np.abs(np.nan_to_num(values) - clipped))) > 0.1:
        raise ValueError(
            "image values must be uint8 or lie in [0, 1], got "
            f"[{np.nanmin(values):.3g}, {np.nanmax(values):.3g}]: undo the normalisation first"
        )
    return clipped


def _check_labels(name: str, labels: Sequence[str] | None, expected: int) -> None:
    if labels is not None and len(labels) != expected:
        raise ValueError(f"{name} expects {expected} labels, got {len(labels)}")


def _spread(places: np.ndarray, room: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Pushes labels apart until no two lie within `room` (width, height) of each other."""
    moved = places.copy()
    for _ in range(rounds):
        gap = (moved[:, None] - moved[None]) / room
        close = np.clip(1.0 - np.abs(gap), 0.0, None).prod(-1)
        np.fill_diagonal(close, 0.0)
        close = np.nan_to_num(close)
        if not (close > 0.05).any():
            break
        # Coinciding labels have no direction between them: their order gives one.
        order = np.sign(np.subtract.outer(np.arange(len(moved)), np.arange(len(moved))))
        away = np.where(np.abs(gap[..., 1]) > 1e-9, np.sign(gap[..., 1]), order)
        moved[:, 1] += 0.25 * room[1] * (close * away).sum(1)
    return moved


def _short(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e5:
        return str(int(value))
    return f"{value:.2f}" if 0.01 <= abs(value) < 100 else f"{value:.2g}"
