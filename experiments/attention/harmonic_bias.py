"""Logits that fall with a harmonic series of distance: small models that read beyond training.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, whose abstract alone names the combination of rotary positions (RoPE) and ALiBi
with a harmonic series; both forms are our readings. Models of one shape learn short windows of real
text with each form and with RoPE, ALiBi, both together, or no positions (NoPE). All read windows
eight times as long. The model with RoPE reads them through a window of the training length too,
which is the strongest simple baseline. Sizes and margins are this repository's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.attention import harmonic_figures
from experiments.attention.harmonic_variants import learning, reading, unrotated, variants
from experiments.common import small_lm
from rml.attention import attention_of
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2410.18441, abstract; form, data, sizes and margin are this repository's"
EXTRA = f"{SOURCE}; stated after the first measurement, in which it gained at one length as well"
CLAIMS = (
    Claim("At 8 training lengths it gains 0.1 nats more over RoPE than at one",
          "extra_bias_8x", ">=", 0.1, EXTRA, stated="2026-11-26", null="extra_bias_geometric_8x"),
    Claim("Perplexity of the bias at 8 training lengths is at most 2% above ALiBi's",
          "bias_over_alibi_8x", "<=", 0.02, SOURCE, stated="2026-11-26",
          null="rope_over_alibi_8x"),
)  # fmt: skip
CAPTIONS = harmonic_figures.CAPTIONS
PICTURE = "positions.png"
WINDOW = "rope_window"
"""The model with RoPE, read through a window."""
MULTIPLES = (1, 2, 4, 8)
"""Lengths that are read, in those of training."""


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains with each form, reads long windows, compares, draws."""
    check(config)
    text = small_lm.read_text(config)
    longest = MULTIPLES[-1] * config.text.length
    windows = text.windows("test", longest, config.long.windows)
    found: dict[str, np.ndarray] = {}
    compared = variants(config.long.strength)
    for rotary in (True, False):
        own = config if rotary else unrotated(config)
        names = [name for name, variant in compared.items() if variant.rotary == rotary]
        learned = {name: learning(config, compared[name]) for name in names}
        for name, params in small_lm.trained(own, run, text, learned).items():
            found[name] = small_lm.nats(own, reading(compared[name]), params, windows)
            if name == "rope":
                near = attention_of("window", width=config.text.length, sinks=0)
                found[WINDOW] = small_lm.nats(own, near, params, windows)
    metrics = summarised(found, config.text.length)
    harmonic_figures.of_laws(run, compared, config.model.heads, longest)
    harmonic_figures.of_positions(run, found, config.text.length)
    harmonic_figures.of_lengths(run, found, config.text.length, MULTIPLES)
    Progress().note(f"at 8 lengths: { {n: round(metrics[f'nats_{n}_8x'], 3) for n in found} }")
    return metrics


def check(config: Any) -> None:
    """Raises `UserError` unless the slopes fall."""
    if config.long.strength <= 0:
        raise UserError(f"long.strength is {config.long.strength}, expected above 0")


def at(nats: np.ndarray, multiple: int, length: int) -> np.ndarray:
    """Means over seeds and the last half of windows of so many training lengths, [windows].

    No token sees a later one: the beginning of a long window is a short window.
    """
    return nats[..., multiple * length // 2 - 1 : multiple * length - 1].mean(axis=(0, 2))


def summarised(found: Mapping[str, np.ndarray], length: int) -> dict[str, float]:
    """Metrics from nats [seeds, windows, n] by variant; differences have intervals over windows."""
    metrics: dict[str, float] = {}
    pairs = {}
    for k in MULTIPLES:
        own = {name: at(nats, k, length) for name, nats in found.items()}
        metrics |= {f"nats_{name}_{k}x": float(values.mean()) for name, values in own.items()}
        for name in ("bias", "bias_geometric", "factor", "factor_geometric", "alibi", "rope_alibi"):
            pairs[f"gain_{name}_{k}x"] = own["rope"] - own[name]
            # Geometric slopes are the null of the bias alone: a factor gains with them as well.
            pairs[f"extra_{name}_{k}x"] = pairs[f"gain_{name}_{k}x"] - pairs[f"gain_{name}_1x"]
        for name in ("bias", "factor", "rope", "rope_alibi"):
            # A difference of nats is the logarithm of a ratio of perplexities.
            pairs[f"{name}_over_alibi_{k}x"] = np.expm1(own[name] - own["alibi"])
        for name in ("bias", "factor", "alibi", "nope"):
            pairs[f"{name}_over_window_{k}x"] = own[name] - own[WINDOW]
    return metrics | small_lm.differences(pairs)
