"""Figures of the recipe on S2-attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.attention.s2_patterns import NAMES, Variant
from experiments.common import figures
from rml.evaluation.long_text import by_position
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "patterns.png": "Blocks of keys that each head sees for each block of queries, and last the "
    "share of heads that see each.",
    "cache.png": "Nats a token of test windows against bytes of the cache over a full one's, mean "
    "over windows; patterns of equal keys a query at each stride, but for those that are partly "
    "dense.",
    "positions.png": "Nats a token beyond dense attention against position; bands: 95% interval "
    "over windows.",
}
HEADS = 3
"""Heads whose patterns are drawn."""
BINS = 8
"""Ranges of positions."""


def of_patterns(run: RunDirectory, pattern: np.ndarray) -> None:
    """Draws the patterns of the first heads, and the share of heads that see each pair."""
    shown = np.concatenate([pattern[:HEADS], pattern.mean(axis=0)[None]]).astype(float)
    figures.heatmap(
        run.figure("patterns.png"), shown, None,
        [*(f"head {i + 1}" for i in range(len(shown) - 1)), "all heads"], xlabel="blocks of keys",
        ylabel="blocks of queries", value_label="share of heads", gap=2,
    )  # fmt: skip


def of_nats(
    run: RunDirectory, found: Mapping[str, np.ndarray], variants: Mapping[str, Variant],
    strides: Sequence[int],
) -> None:  # fmt: skip
    """Draws nats [seeds, windows, n] against bytes of the cache and against position."""
    series: dict[str, Any] = {}
    for name, shown in NAMES.items():
        own = sorted(
            (variants[key].cache, found[key].mean()) for key in found if key.split("_")[0] == name
        )
        series[shown] = tuple(np.array(own).T)
    figures.curves(
        run.figure("cache.png"), series, "bytes of the cache over a full one's", "nats a token"
    )
    series = {}
    for name, shown in NAMES.items():
        if name == "dense":
            continue
        beyond = (found[f"{name}_{strides[-1]}"] - found["dense"]).mean(axis=0)
        edges = np.linspace(1, beyond.shape[-1] + 1, BINS + 1).round().astype(int)
        mean, low, high = t_interval(by_position(beyond, edges.tolist()).T)
        series[shown] = ((edges[:-1] + edges[1:]) / 2, mean, low, high)
    figures.curves(
        run.figure("positions.png"), series, "position in the window (tokens)",
        "nats a token beyond dense",
    )  # fmt: skip
