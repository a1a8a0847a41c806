"""Figures of numbers along an axis: curves, power laws, spectra, histograms, a run's training."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.common.figures.canvas import COLUMN, File, canvas, legend, look
from rml.ops import t_interval
from rml.training import read_metrics

Series = Mapping[str, Sequence[ArrayLike]]
_SIZE = (COLUMN, 0.68 * COLUMN)


def curves(
    path: File, series: Series, xlabel: str, ylabel: str, title: str | None = None,
    logy: bool = False, reference: tuple[str, float] | None = None, above: bool = False,
    upright: tuple[str, float] | None = None,
) -> None:  # fmt: skip
    """Draws lines over a common horizontal axis, with bands where bounds are given.

    `series` maps a name to `(x, y)` or `(x, y, low, high)`, each `[n]`, with gaps where not finite.
    `reference` is the name and height of a dashed line, e.g. `("chance", 0.1)`, at which the
    vertical axis begins unless a line goes below it; `upright` the name and place of a dotted one
    across the other axis. The legend stands `above` the axes where it would hide a line.
    """
    checked = _checked("curves", series, bands=True)
    with canvas(path, _SIZE, title) as figure:
        ax = figure.add_subplot()
        for index, (name, (x, y, *band)) in enumerate(checked.items()):
            ax.plot(
                x, y, label=name, markevery=_marks(len(x), index, len(checked)),
                markeredgecolor="white", markeredgewidth=0.4,
                **look(index, "color", "linestyle", "marker"),
            )  # fmt: skip
            if band:
                ax.fill_between(x, *band, alpha=0.18, linewidth=0, **look(index, "color"))
        ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if logy else "linear")
        ax.grid(visible=True)
        ax.margins(x=0.02)
        if all(np.array_equal(x, np.rint(x)) for x, *_ in checked.values()):
            ax.xaxis.get_major_locator().set_params(integer=True)  # no half layers or steps
        if reference is not None:
            ax.axhline(reference[1], label=reference[0], color="#333333", ls="--", lw=0.9)
            if (
                min(np.nanmin(part) for _, *parts in checked.values() for part in parts)
                >= reference[1]
            ):
                ax.set_ylim(bottom=reference[1])
        if upright is not None:
            ax.axvline(upright[1], label=upright[0], color="#333333", ls=":", lw=0.9)
        legend(ax, len(checked) + (reference is not None) + (upright is not None), above)


def band(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means over the last axis and their interval; no width where there is one value."""
    mean, low, high = t_interval(values)
    return mean, np.where(np.isfinite(low), low, mean), np.where(np.isfinite(high), high, mean)


def loglog(
    path: File, series: Series, xlabel: str, ylabel: str, title: str | None = None
) -> dict[str, float]:
    """Draws series `(x, y)` and power laws fitted to them on logarithmic axes.

    Returns the laws' exponents: the least-squares slopes of log y against log x.
    """
    slopes = {}
    checked = _checked("loglog", series, bands=False)
    with canvas(path, _SIZE, title) as figure:
        ax = figure.add_subplot()
        for index, (name, (x, y)) in enumerate(checked.items()):
            if len(set(x)) < 2 or not all(0 < value < np.inf for value in (*x, *y)):
                raise ValueError(
                    f"loglog series {name!r} expects positive, finite values, two x, got {x}, {y}"
                )
            slope, offset = np.polyfit(np.log(x), np.log(y), 1)
            slopes[name] = float(slope)
            ax.loglog(x, np.exp(offset) * x**slope, "--", linewidth=1, **look(index, "color"))
            label = f"{name} (slope {slope:.2f})"
            ax.plot(x, y, label=label, linestyle="none", **look(index, "color", "marker"))
        if len(places := np.unique([value for x, _ in checked.values() for value in x])) <= 6:
            ax.set_xticks(places, [f"{place:,.6g}" for place in places])
            ax.set_xticks([], minor=True)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(visible=True, which="both")
        legend(ax, len(checked) + 1)
    return slopes


def spectrum(
    path: File, singular_values: Mapping[str, ArrayLike],
    effective_ranks: Mapping[str, float] | None = None, title: str | None = None,
    ylabel: str = "singular value / largest",
) -> None:  # fmt: skip
    """Draws singular values over their index, divided by the largest: a cliff is collapse.

    Both mappings have the spectra's names; the legend gives the effective ranks.
    """
    series = {}
    for name, given in singular_values.items():
        values = np.sort(np.asarray(given, float).ravel())[::-1]
        if not (len(values) and np.isfinite(values).all() and values[-1] >= 0):
            raise ValueError(f"spectrum {name!r} expects finite singular values, >= 0")
        rank = (effective_ranks or {}).get(name)
        label = name if rank is None else f"{name} (effective rank {rank:.3g} of {len(values)})"
        largest = values[0]
        if not largest:
            label, largest = f"{name} (collapsed: all are zero)", 1.0
        # Below float32 rounding a value is noise, and zeros have no logarithm.
        series[label] = (np.arange(1, len(values) + 1), np.maximum(values / largest, 1e-8))
    curves(path, series, "index of singular value", ylabel, title, logy=True)


def histogram(
    path: File, series: Mapping[str, ArrayLike], xlabel: str, ylabel: str, title: str | None = None
) -> None:
    """Draws outlines of the distributions of samples `[n]`; what is not finite is left out."""
    samples = {name: np.asarray(values, float).ravel() for name, values in series.items()}
    samples = {name: values[np.isfinite(values)] for name, values in samples.items()}
    sizes = {name: len(values) for name, values in samples.items()}
    if not sizes or not all(sizes.values()):
        raise ValueError(f"histogram needs series with finite values, got {sizes}")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=30)
    with canvas(path, _SIZE, title) as figure:
        ax = figure.add_subplot()
        for index, (name, values) in enumerate(samples.items()):
            counts = np.histogram(values, edges)[0]
            ax.stairs(counts, edges, linewidth=1.3, label=name, **look(index, "color", "linestyle"))
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(visible=True, axis="y")
        ax.margins(x=0.02)
        legend(ax, len(samples))


def logged(run_path: Path, names: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of the metrics (`{"loss": "train/loss"}`) that a run has logged."""
    lines = read_metrics(run_path / "metrics.jsonl")
    series = {}
    for name, metric in names.items():
        if own := [line for line in lines if metric in line]:
            values = np.array([float(line[metric]) for line in own])
            series[name] = np.array([line["step"] for line in own]), values
    return series


def training_curves(
    folder: Callable[[str], Path], run_path: Path, panels: Mapping[str, str],
    references: Mapping[str, tuple[str, float]] | None = None,
) -> None:  # fmt: skip
    """Draws a run's metrics against steps, a figure each: "train/loss" becomes `loss.png`.

    `panels` maps a metric to its axis label; one that was logged less than twice is left out.
    `references` gives some metrics a baseline, see `curves`.
    """
    for metric, label in panels.items():
        name = metric.split("/")[-1]
        series = logged(run_path, {name: metric})
        if series and len(series[name][0]) > 1:
            reference = (references or {}).get(metric)
            curves(folder(f"{name}.png"), series, "step", label, reference=reference)


def _checked(kind: str, series: Series, *, bands: bool) -> dict[str, list[np.ndarray]]:
    if not series:
        raise ValueError(f"{kind} needs at least one series, got none")
    checked = {name: [np.asarray(a, float) for a in given] for name, given in series.items()}
    for name, arrays in checked.items():
        shapes = [a.shape for a in arrays]
        if len(shapes) not in (2, 4 * bands) or len(shapes[0]) != 1 or len(set(shapes)) > 1:
            parts = "(x, y)" + " or (x, y, low, high)" * bands
            raise ValueError(f"{kind} series {name!r} expects {parts} of one length, got {shapes}")
    return checked


def _marks(length: int, index: int, count: int) -> Any:
    """About eight markers a line, staggered so that coinciding lines do not hide one another."""
    every = math.ceil(length / 8)
    return (index * every // count, every) if length > 12 else 1
