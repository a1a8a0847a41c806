"""Figures of the recipe on HyperAttention."""

from typing import Any

import numpy as np

from experiments.common import figures
from rml.evaluation.long_text import by_position
from rml.training import RunDirectory

OVER = "bands: 95% interval over speeches, and over draws of HyperAttention and uniform samples"
CAPTIONS = {
    "layers.png": "Nats a token lost against the number of last layers whose attention is "
    f"replaced; {OVER}; Performer draws once.",
    "positions.png": "Nats a token lost against position with half of the layers replaced; "
    f"{OVER}.",
    "samples.png": "Relative error of a layer against samples (log₂), with the fitted slope and "
    "its 95% interval, beside first and last keys, equally many in all; bands: 95% interval over "
    "planes and samples.",
    "blocks.png": "Relative error of a layer against keys of a block (log₂), sorted by hashes and "
    "by position; bands: 95% interval over planes and samples.",
    "sorted.png": "Weights of the head whose error is farthest below that of uniform samples: by "
    "position, sorted by further planes, and what the blocks hold. A cell is the mean over equally "
    "many queries and keys.",
    "flops.png": "Counted operations of one head against tokens (log₂).",
}
NAMES = {
    "hyperattention": "HyperAttention", "uniform": "uniform samples", "window": "window and sinks",
    "performer": "Performer",
}  # fmt: skip
BINS = 8
"""Ranges of positions."""


def of_nats(run: RunDirectory, nats: dict[tuple[str, int], np.ndarray], half: int) -> None:
    """Draws lost nats [documents, planes, n - 1] against layers and against positions."""
    layers = sorted({count for _, count in nats})
    series: dict[str, Any] = {}
    for name, shown in NAMES.items():
        means = np.stack([nats[name, count].mean(-1).ravel() for count in layers])
        series[shown] = (layers, *figures.band(means))
    figures.curves(run.figure("layers.png"), series, "last layers replaced", "nats a token lost")
    series = {}
    for name, shown in NAMES.items():
        if name == "performer":  # its loss would hide the others'
            continue
        own = nats[name, half].reshape(-1, nats[name, half].shape[-1])
        edges = np.linspace(1, own.shape[-1] + 1, BINS + 1).round().astype(int)
        middles = (edges[:-1] + edges[1:]) / 2
        series[shown] = (middles, *figures.band(by_position(own, edges.tolist()).T))
    figures.curves(run.figure("positions.png"), series, "position in the text (tokens)",
                   "nats a token lost")  # fmt: skip


def of_costs(run: RunDirectory, lengths: Any, series: dict[str, np.ndarray]) -> None:
    """Draws counted operations."""
    at = np.log2(np.asarray(lengths, float))
    lines = {name: (at, values) for name, values in series.items()}
    figures.curves(run.figure("flops.png"), lines, "tokens (log₂)", "operations", logy=True)


def of_errors(
    run: RunDirectory, samples: Any, by_samples: np.ndarray, recent: np.ndarray,
    metrics: dict[str, float], blocks: Any, by_block: dict[str, np.ndarray], picture: Any,
) -> None:  # fmt: skip
    """Draws errors [seeds, sizes] against samples and blocks, and a sorted matrix."""
    at = np.log2(np.asarray(samples, float))
    slope = metrics["samples_slope"]
    middle = np.log2(by_samples).mean()
    fit = f"slope {slope:.2f} [{metrics['samples_slope_low']:.2f}, " \
          f"{metrics['samples_slope_high']:.2f}]"  # fmt: skip
    series: dict[str, Any] = {
        "HyperAttention": (at, *figures.band(by_samples.T)),
        fit: (at, 2 ** (middle + slope * (at - at.mean()))),
        "first and last keys": (at, recent),
    }
    figures.curves(run.figure("samples.png"), series, "samples (log₂)", "relative error", logy=True)
    at = np.log2(np.asarray(blocks, float))
    names = {"": "sorted by hashes", "_unhashed": "by position"}
    series = {shown: (at, *figures.band(by_block[name].T)) for name, shown in names.items()}
    figures.curves(run.figure("blocks.png"), series, "keys of a block (log₂)", "relative error",
                   logy=True)  # fmt: skip
    shades = np.log10(np.maximum(np.asarray(picture), 1e-6))
    figures.heatmap(
        run.figure("sorted.png"), shades, None, ["by position", "sorted", "in blocks"],
        xlabel="cells of keys",
        ylabel="cells of queries", value_label="log₁₀ of weight", gap=4,
    )  # fmt: skip
