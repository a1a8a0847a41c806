"""Figures of the recipe on blocks drawn by distance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from rml.attention import Law, causal_weights, keep_probabilities
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "laws.png": "Chance that a block of keys is kept against its distance in blocks, at equal mean "
    "numbers of blocks a query.",
    "errors.png": "Relative error of outputs of the last half of queries, geometric mean over "
    "heads and draws, against the layer; bands: 95% interval over heads.",
    "lost.png": "Nats a token that texts lose with half of the layers replaced; error bars: 95% "
    "interval over texts.",
}
TITLES = {
    "harmonic": "harmonic law", "geometric": "geometric law", "uniform": "uniform draws",
    "strided": "strided", "window": "window", "window_sinks": "window and sinks", "law": "law",
}  # fmt: skip


def of_laws(run: RunDirectory, laws: Mapping[str, Law], blocks: int) -> None:
    """Draws the chances."""
    share = causal_weights(blocks)
    series = {
        TITLES[name]: (np.arange(blocks), keep_probabilities(blocks, law, share))
        for name, law in laws.items()
    }
    figures.curves(run.figure("laws.png"), series, "distance (blocks)", "chance that it is kept")


def of_errors(run: RunDirectory, found: Mapping[str, np.ndarray], layers: Sequence[int]) -> None:
    """Draws errors [draws, layers, heads] against the layer."""
    series: dict[str, Any] = {}
    for name, own in found.items():
        mean, low, high = t_interval(np.log(own).mean(axis=0))
        series[TITLES[name]] = (np.asarray(layers, float), *map(np.exp, (mean, low, high)))
    figures.curves(
        run.figure("errors.png"), series, "layer", "relative error of the output", logy=True
    )


def of_lost(run: RunDirectory, lost: Mapping[str, np.ndarray]) -> None:
    """Draws what texts [documents] lose."""
    ends = {TITLES[name]: t_interval(own) for name, own in lost.items()}
    figures.bars(
        run.figure("lost.png"), list(ends), {"lost": [own[0] for own in ends.values()]},
        {"lost": [(own[2] - own[1]) / 2 for own in ends.values()]}, ylabel="nats a token lost",
        decimals=3,
    )  # fmt: skip
