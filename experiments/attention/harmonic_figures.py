"""Figures of the recipe on logits that fall with distance."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.attention.harmonic_variants import Variant
from experiments.common import figures
from rml.attention import distance_laws
from rml.evaluation.long_text import by_position
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "laws.png": "What the harmonic bias and ALiBi add to a logit against distance (log₂ of 1 + "
    "tokens), in the first and the last head.",
    "factors.png": "What the harmonic factor multiplies a logit with, likewise.",
    "positions.png": "Nats a token against position in windows of eight training lengths "
    "(log₂ of tokens); bands: 95% interval over windows.",
    "lengths.png": "Nats a token in the last half of windows of one and of eight training lengths; "
    "error bars: 95% interval of the difference to RoPE over windows.",
}
TITLES = {
    "rope": "RoPE", "nope": "no positions", "alibi": "ALiBi", "rope_alibi": "RoPE and ALiBi",
    "bias": "harmonic bias", "bias_geometric": "bias, geometric", "factor": "harmonic factor",
    "factor_geometric": "factor, geometric", "rope_window": "RoPE, window",
}  # fmt: skip
DRAWN = ("rope", "nope", "alibi", "bias", "factor", "rope_window")
"""What is drawn against position."""
BINS = 24
"""Ranges of positions."""


def of_laws(run: RunDirectory, compared: Mapping[str, Variant], heads: int, longest: int) -> None:
    """Draws the laws that models were trained with, of the first and the last head."""
    n = np.unique(np.geomspace(1, longest, 60).astype(int)) - 1
    at, shown = jnp.asarray(n), sorted({0, heads - 1})
    added: dict[str, Any] = {}
    factors: dict[str, Any] = {}
    for name, series in (("bias", added), ("alibi", added), ("factor", factors)):
        laws = distance_laws(heads, **compared[name].law or {})
        law = laws.factor or laws.bias
        assert law is not None
        values = np.asarray(law(at, jnp.zeros(1, jnp.int32)))[:, :, 0]
        for h in shown:
            inside = values[h] > -10  # below it a key has no weight to speak of
            series[f"{TITLES[name]}, head {h + 1}"] = (np.log2(1 + n[inside]), values[h][inside])
    label = "distance (log₂ of 1 + tokens)"
    figures.curves(run.figure("laws.png"), added, label, "added to a logit")
    figures.curves(run.figure("factors.png"), factors, label, "factor of a logit")


def of_positions(run: RunDirectory, found: Mapping[str, np.ndarray], length: int) -> None:
    """Draws nats [seeds, windows, n] against position."""
    n = found["rope"].shape[-1]
    edges = np.unique(np.geomspace(min(16, length // 2), n + 1, BINS + 1).round().astype(int))
    series = {}
    for name in DRAWN:
        bins = by_position(found[name].mean(axis=0), edges.tolist())
        middle = np.log2(np.sqrt(edges[:-1] * edges[1:]))
        series[TITLES[name]] = (middle, *t_interval(bins.T))
    figures.curves(
        run.figure("positions.png"), series, "position in the window (log₂ of tokens)",
        "nats a token",
    )  # fmt: skip


def of_lengths(
    run: RunDirectory, found: Mapping[str, np.ndarray], length: int, multiples: Sequence[int]
) -> None:
    """Draws nats in the last half of windows of the first and the last of some lengths."""
    values: dict[str, list[float]] = {}
    halves: dict[str, list[float]] = {}
    for k in (multiples[0], multiples[-1]):
        series = f"{k} training length{'s' * (k > 1)}"
        for name in TITLES:
            nats, rope = (
                found[own][..., k * length // 2 - 1 : k * length - 1].mean(axis=(0, 2))
                for own in (name, "rope")
            )
            _, low, high = t_interval(nats - rope)
            values.setdefault(series, []).append(float(nats.mean()))
            halves.setdefault(series, []).append(float(high - low) / 2)
    figures.bars(
        run.figure("lengths.png"), list(TITLES.values()), values, halves, ylabel="nats a token",
        decimals=2, cut=True,
    )  # fmt: skip
