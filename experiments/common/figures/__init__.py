"""Figures for papers and reports: one house style, one function a kind of figure, each saves a PNG.

Every figure reads in grey and with any colour vision: series differ by colour, line style and
marker; bars by hatching; classes by marker and by their name written on the cluster.

`path` is the PNG, whose folder is made; `title` stands above the figure; `xlabel` and `ylabel` name
axes with their units. What cannot be drawn raises `ValueError`, and no file is written. A figure of
another kind is drawn by hand on a `canvas`, its series told apart by `look`.
"""

from experiments.common.figures.bars import bars, dots, parted, table
from experiments.common.figures.canvas import (  # fmt: skip
    COLUMN,
    DPI,
    HATCHES,
    LINES,
    MARKERS,
    PALETTE,
    canvas,
    legend,
    look,
    placed_words,
    style,
)
from experiments.common.figures.curves import (  # fmt: skip
    band,
    curves,
    histogram,
    logged,
    loglog,
    spectrum,
    training_curves,
)
from experiments.common.figures.images import embedding, image_grid, views
from experiments.common.figures.matrices import dendrogram, heatmap

__all__ = [
    "COLUMN", "DPI", "HATCHES", "LINES", "MARKERS", "PALETTE", "band", "bars", "canvas", "curves",
    "dendrogram", "dots", "embedding", "heatmap", "histogram", "image_grid", "legend", "logged",
    "loglog", "look", "parted", "placed_words", "spectrum", "style", "table",
    "training_curves", "views",
]  # fmt: skip
