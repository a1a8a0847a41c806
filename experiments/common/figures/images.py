"""Figures of examples: images, the views that an augmentation makes of them, maps."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from experiments.common.figures.canvas import (  # fmt: skip
    COLUMN,
    File,
    Names,
    canvas,
    check_labels,
    look,
    shorten,
)
from rml.data import augment

NAMED = 40  # more classes than names that fit on a map


def image_grid(
    path: File, rows_of_images: Sequence[Sequence[ArrayLike]] | ArrayLike,
    row_labels: Names = None, column_labels: Names = None, title: str | None = None,
) -> None:  # fmt: skip
    """Draws rows of images, by custom the original first and its views after it.

    Images are `[h, w]`, `[h, w, 1]` or `[h, w, 3]`, of uint8 or of floats in [0, 1] (what noise
    pushes past the ends is clipped). Rows may differ in length and images in size.
    """
    rows = [[_image(image) for image in row] for row in rows_of_images]  # type: ignore[union-attr]
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("image_grid needs at least one image, got none")
    check_labels("row_labels", row_labels, len(rows))
    check_labels("column_labels", column_labels, columns)
    cell = min(0.85, 7.0 / columns)
    aspect = float(np.mean([len(image) / image.shape[1] for row in rows for image in row]))
    longest = max((len(label) for label in row_labels or ()), default=0)
    width = max(cell * columns + 0.07 * longest + 0.1, 0.08 * len(title or ""))
    height = cell * aspect * len(rows) + 0.2 + 0.2 * bool(title) + 0.15 * bool(column_labels)
    with canvas(path, (width, height), title) as figure:
        figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015)
        ax = figure.add_subplot()  # one for all: each has ticks, and a layout is sought for each
        # The layout leaves room for labels beside the axes as they are before images shape them.
        ax.set_anchor("W")
        for i, row in enumerate(rows):
            for j, image in enumerate(row):
                h, w = (
                    side / max(image.shape[0] / aspect, image.shape[1]) for side in image.shape[:2]
                )
                w, h = 0.48 * w, 0.48 * h
                place = (j - w, j + w, i * aspect + h, i * aspect - h)
                ax.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, extent=place)
        ax.set(xlim=(-0.5, columns - 0.5), ylim=((len(rows) - 0.5) * aspect, -0.5 * aspect))
        ax.spines[:].set_visible(False)
        ax.xaxis.tick_top()
        ax.tick_params(length=0, labelsize=7)
        ax.set_xticks(range(columns) if column_labels else (), column_labels or ())
        ticks = aspect * np.arange(len(rows))
        ax.set_yticks(ticks if row_labels else (), row_labels or ())


def views(path: File, images: ArrayLike, pipeline: Any, key: Any, *, count: int = 7) -> None:
    """Draws images `[n, h, w, c]` and views of each, made by a pipeline of `augment.compose`."""
    originals = augment.to_float(jnp.asarray(images))
    made = jax.jit(partial(augment.views, pipeline=pipeline, n=count))(key, originals)
    shown, made = (np.clip(np.asarray(one), 0, 1) for one in (originals, made))
    rows = [[image, *own] for image, own in zip(shown, made.swapaxes(0, 1), strict=True)]
    names = ["image", *(f"view {i + 1}" for i in range(count))]
    image_grid(path, rows, None, names, "Views of the augmentation")


def embedding(
    path: File, xy: ArrayLike, labels: ArrayLike, class_names: Sequence[str],
    title: str | None = None,
) -> None:  # fmt: skip
    """Draws examples `[n, 2]`; a class has a colour, a marker and its name at its median.

    Labels `[n]` are indices of `class_names`; classes without examples are left out, one of an
    empty name is not named. More than `NAMED` are numbered, their names stand beside the map. No
    axis of such a map has a unit, so none is drawn. Where all points coincide the figure says that
    the features have collapsed.
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
    dots = {"s": float(np.clip(12000 / len(points), 3, 16)), "alpha": 0.65, "linewidths": 0}
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    names = [shorten(class_names[c], 36) for c in present]
    tags = [str(c) for c in present] if len(names) > NAMED else names
    size = 8 if len(names) <= 20 else 6 if tags is names else 4.5
    side = COLUMN * (1.0 if tags is names else 2.2)
    font = {"fontsize": size, "fontweight": "bold", "path_effects": halo}
    beside = (
        [] if tags is names else [f"{c}  {name}" for c, name in zip(present, names, strict=True)]
    )
    lines = int((side - 0.4) / 0.075)
    columns = [beside[start : start + lines] for start in range(0, len(beside), lines)]
    widths = [0.3 + 0.036 * max(map(len, column)) for column in columns]
    with canvas(path, (side + sum(widths), side), title) as figure:
        parts = figure.add_gridspec(1, 1 + len(columns), width_ratios=[side, *widths])
        ax = figure.add_subplot(parts[0])
        for place, column in enumerate(columns, 1):
            key = figure.add_subplot(parts[place])
            key.axis("off")
            key.text(
                0, 1, "\n".join(column), va="top", fontsize=4.2, transform=key.transAxes,
                in_layout=False,
            )  # fmt: skip
        for index, member in enumerate(members):
            ax.scatter(*member.T, **dots, **look(index, "color", "marker"))
        finite = points[np.isfinite(points).all(1)]
        span = np.ptp(finite, axis=0) if len(finite) else np.zeros(2)
        letters = float(np.mean([len(tag) for tag in tags]))
        room = np.clip((0.65 * letters, 1.3), (2.6, 1.3), None) * size / 72 / side
        places = spread(medians, np.where(span > 0, span, 1.0) * room)
        for text, place in zip(tags, places, strict=True):
            if np.isfinite(place).all() and text and span.any():
                ax.annotate(text, place, ha="center", va="center", **font)
        if not span.any():
            words = "collapsed:\nall features are equal" if len(finite) else "no finite features"
            ax.text(0.5, 0.7, words, ha="center", transform=ax.transAxes, fontsize=10)
        ax.set(xticks=[], yticks=[])
        ax.set_aspect("equal", adjustable="datalim")
        ax.spines[:].set(visible=True, color="#BBBBBB")


def spread(places: np.ndarray, room: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Pushes labels apart until no two lie within `room` (width, height) of each other."""
    moved = places.copy()
    for _ in range(rounds):
        gap = (moved[:, None] - moved[None]) / room
        close = np.nan_to_num(np.clip(1.0 - np.abs(gap), 0.0, None).prod(-1))
        np.fill_diagonal(close, 0.0)
        if not (close > 0.05).any():
            break
        # Coinciding labels have no direction between them: their order gives one.
        order = np.sign(np.subtract.outer(np.arange(len(moved)), np.arange(len(moved))))
        away = np.where(np.abs(gap[..., 1]) > 1e-9, np.sign(gap[..., 1]), order)
        moved[:, 1] += 0.25 * room[1] * (close * away).sum(1)
    return moved


def _image(image: ArrayLike) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise ValueError(f"an image is [h, w], [h, w, 1] or [h, w, 3], got shape {pixels.shape}")
    values = pixels / 255.0 if pixels.dtype == np.uint8 else np.asarray(pixels, np.float64)
    clipped = np.clip(np.nan_to_num(values), 0.0, 1.0)
    if float(np.mean(np.abs(np.nan_to_num(values) - clipped))) > 0.1:
        raise ValueError(
            "image values must be uint8 or lie in [0, 1], got "
            f"[{np.nanmin(values):.3g}, {np.nanmax(values):.3g}]: undo the normalisation first"
        )
    return clipped
