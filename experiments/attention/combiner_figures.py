"""Figures of the recipe on Combiner."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.attention.combiner_variants import NAMES
from experiments.common import figures
from rml.attention import partition
from rml.attention.partitions import DIRECT
from rml.evaluation.long_text import by_position
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "support.png": "How the keys of each query are cut by fixed, logsparse and axial: 1 where they "
    "are attended to directly, lower by the region they are summarised in, 0 where unseen.",
    "nats.png": "Nats a token of test windows by attention, with its keys a query; error bars: 95% "
    "interval of the difference to exact attention over windows.",
    "positions.png": "Nats a token beyond exact attention against position, of some; bands: 95% "
    "interval over windows.",
    "weights.png": "Weights of a head of the model trained with fixed, of tokens that it attends "
    "to directly and of those in regions, beside those of softmax over the same queries and keys.",
    "operations.png": "Counted operations of one causal head against tokens (log₂).",
}
TOKENS, SEGMENT = 32, 6
"""Tokens of the figure of the support, and of a segment in it."""
BINS = 8
"""Ranges of positions."""
FOLLOWED = ("fixed", "logsparse", "vertical", "mixture", "fixed_direct", "window")
"""What is drawn against position."""


def of_support(run: RunDirectory) -> None:
    """Draws how the three factorisations cut what is seen."""
    shades = []
    for kind, segment in (("fixed", SEGMENT), ("logsparse", 1), ("vertical", SEGMENT)):
        labels = partition(kind, TOKENS, segment=segment, causal=True)
        # Neighbouring regions differ by a step among three.
        region = 0.25 + 0.15 * ((labels - 2) // (2 if kind == "vertical" else 1) % 3)
        shades.append(np.where(labels == DIRECT, 1.0, np.where(labels == 0, 0.0, region)))
    figures.heatmap(
        run.figure("support.png"), np.stack(shades), None, ["fixed", "logsparse", "axial"],
        xlabel="keys",
        ylabel="queries", value_label="how it is seen", gap=2,
    )  # fmt: skip


def of_nats(run: RunDirectory, found: Mapping[str, np.ndarray], keys: Mapping[str, float]) -> None:
    """Draws nats [seeds, windows, n] by attention with its keys a query, and against position."""
    rows, halves, series = {}, {}, {}
    edges = np.linspace(1, found["exact"].shape[-1] + 1, BINS + 1).round().astype(int)
    for name in found:
        shown = NAMES.get(name, name)
        beyond = (found[name] - found["exact"]).mean(axis=0)
        _, low, high = t_interval(beyond.mean(axis=-1))
        label = f"{shown} ({keys[name]:.0f})"
        rows[label], halves[label] = found[name].mean(), (high - low) / 2
        if name in FOLLOWED:
            at = (edges[:-1] + edges[1:]) / 2
            series[shown] = (at, *t_interval(by_position(beyond, edges.tolist()).T))
    figures.bars(
        run.figure("nats.png"), list(rows), {"nats a token": list(rows.values())},
        {"nats a token": list(halves.values())}, ylabel="nats a token", decimals=3, cut=True,
    )  # fmt: skip
    figures.curves(
        run.figure("positions.png"), series, "position in the window (tokens)",
        "nats a token beyond exact",
    )  # fmt: skip


def of_weights(
    run: RunDirectory, weights: np.ndarray, direct: np.ndarray, exact: np.ndarray
) -> None:
    """Draws effective weights [t, t], those of direct keys apart from others, and exact ones."""
    parts = [np.where(direct, weights, 0.0), np.where(direct, 0.0, weights), exact]
    shades = np.log10(np.maximum(np.stack(parts), 1e-5))
    figures.heatmap(
        run.figure("weights.png"), shades, None, ["direct", "in regions", "softmax"],
        xlabel="keys", ylabel="queries",
        value_label="log₁₀ of weight", gap=2,
    )  # fmt: skip


def of_operations(run: RunDirectory, lengths: Any, found: Mapping[str, np.ndarray]) -> None:
    """Draws counted operations."""
    at = np.log2(np.asarray(lengths, float))
    series = {NAMES.get(name, name): (at, values) for name, values in found.items()}
    figures.curves(run.figure("operations.png"), series, "tokens (log₂)", "operations", logy=True)
