"""The house style: colours, lines and markers, the canvas of every figure, legends.

Matplotlib is imported when a figure is drawn. `pyplot` is never used: no figure stays in memory, no
backend or display is chosen for the caller.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

File = str | Path
Names = Sequence[str] | None
CROWD, PITCH = 25, 0.045  # names that fit a column; inches that each takes where there are more
WRITTEN, ENTRIES = 300, 18  # most names along an axis, and in a legend
COLUMN = 3.5  # inches: the width of one column of a two-column paper
DPI = 200
# Okabe and Ito's palette, dark and light in turn; grey for their yellow, which is faint on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9", "#7F7F7F")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----")
_LOOKS = {"color": PALETTE, "linestyle": LINES, "marker": MARKERS, "hatch": HATCHES}
_STYLE: Any = {
    "font.family": "sans-serif", "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "axes.linewidth": 0.7, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#333333",
    "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.5,
    "legend.frameon": False, "legend.handlelength": 2.6,
    "lines.linewidth": 1.3, "lines.markersize": 3.5, "hatch.linewidth": 0.5,
    "image.interpolation": "nearest", "savefig.facecolor": "white", "figure.facecolor": "white",
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sets the house style; afterwards Matplotlib's parameters are the caller's own."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@contextlib.contextmanager
def canvas(path: File, size: tuple[float, float], title: str | None = None) -> Iterator[Any]:
    """Yields a figure of this size in inches, in the house style; saves it once it is drawn."""
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        yield figure
        if title:
            figure.suptitle(title, fontsize=9)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Without the metadata the bytes of equal figures are equal.
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def look(index: int, *kinds: str) -> dict[str, Any]:
    """Matplotlib's options ("color", "linestyle", "marker", "hatch") of the series at an index."""
    return {kind: _LOOKS[kind][index % len(_LOOKS[kind])] for kind in kinds}


def legend(ax: Any, count: int, above: bool = False) -> None:
    """Adds a legend that hides no data: above the axes if large or `above`; one series has none.

    Long names are shortened, and of more than `ENTRIES` the last are counted, not named.
    """
    handles, names = ax.get_legend_handles_labels()
    names = [shorten(name, 44) for name in names]
    if len(names) > ENTRIES:
        more = len(names) - ENTRIES + 1
        handles, names = handles[:ENTRIES], [*names[: ENTRIES - 1], f"… and {more} more"]
    longest = max(map(len, names), default=0)
    if above or count > 6 or (count > 1 and longest > 24):
        columns = max(1, min(3, len(names), 46 // (longest + 8)))
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.3}
        ax.legend(handles, names, ncols=columns, **place)
        rows = math.ceil(len(names) / columns)
        width, height = ax.figure.get_size_inches()
        ax.figure.set_size_inches(width, height + 0.15 * max(0, rows - 3))
    elif count > 1:
        ax.legend(loc="best")


def shorten(name: str, length: int) -> str:
    """A name of at most `length` characters, its middle left out where it is longer."""
    if len(name) <= length:
        return name
    return f"{name[: length - length // 3 - 1]}…{name[-(length // 3) :]}"


def names_along(axis: Any, names: Sequence[str]) -> None:
    """Writes a name at each of 0, 1, ...: small if they are many, only some past `WRITTEN`."""
    every = math.ceil(len(names) / WRITTEN)
    points = {} if len(names) <= CROWD else {"fontsize": 72 * 0.95 * PITCH}
    shown = [shorten(name, 28 if len(names) <= CROWD else 44) for name in names[::every]]
    axis.set_ticks(range(0, len(names), every), shown, **points)
    if len(names) > CROWD:
        axis.set_tick_params(length=0, pad=1)


def check_labels(name: str, labels: Names, expected: int) -> None:
    """Raises `ValueError` unless labels, where given, are as many as expected."""
    if labels is not None and len(labels) != expected:
        raise ValueError(f"{name} expects {expected} labels, got {len(labels)}")


def placed_words(words: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Column and line of each of several words, which follow one another without spaces.

    Lines have `width` characters; a longer word has a line of its own.
    """
    places, left, line = [], 0, 0
    for word in words:
        if left and left + len(word) > width:
            left, line = 0, line + 1
        places.append((left, line))
        left += len(word)
    return places
