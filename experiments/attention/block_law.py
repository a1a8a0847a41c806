"""Blocks of keys drawn by their distance, in a trained language model beside three baselines.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, whose abstract alone speaks of a law over the distance of blocks; law, budget and
weights are our reading. On real queries and keys of SmolLM2 the law stands beside blocks drawn
uniformly, strided blocks, and a window with sinks and without, at equal numbers of keys. Then half
of the model's layers are replaced; each method has as many tries there. Sizes and margins are ours.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.attention import block_law_figures, late
from experiments.attention.block_errors import errors, sums
from experiments.attention.equal_keys import window_width
from experiments.attention.late import speeches
from experiments.attention.layerwise import Decoder
from experiments.common.claims import with_bounds
from rml.attention import Law, causal_weights, keep_probabilities, shard_pattern
from rml.errors import UserError
from rml.models import pretrained
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2410.18441, abstract; law, data, sizes and margin are this repository's"
CLAIMS = (
    Claim("The output's error is 5% below that of blocks drawn uniformly, at equal numbers",
          "gain_over_uniform", ">=", 0.05, SOURCE, stated="2026-11-26", null="gain_between_draws"),
    Claim("Of queries beyond the window it is 5% below that of a sliding window of as many keys",
          "gain_over_window", ">=", 0.05, f"{SOURCE}; margin and null, a law that hardly reaches "
          "beyond the window, were chosen after the first measurement, in which uniform draws "
          "were below the window as well",
          stated="2026-11-26", null="gain_of_geometric_over_window"),
    Claim("Reweighted, the mean over draws of a query's sum is the exact one to 10%",
          "sums_apart", "<=", 0.1, SOURCE, stated="2026-11-26", null="sums_apart_plain"),
    Claim("With half of the layers replaced a text loses less than by uniform draws",
          "late_gain_over_uniform", ">=", 0.0, f"{SOURCE}; stated after the first measurement",
          stated="2026-11-26", null="late_gain_over_strided"),
    Claim("With half of the layers replaced a text loses less than by a window with sinks",
          "late_gain_over_window", ">=", 0.0, f"{SOURCE}; expected to fail: the model was not "
          "trained with it", stated="2026-11-26", null="late_gain_of_uniform_over_window"),
)  # fmt: skip
CAPTIONS = block_law_figures.CAPTIONS
PICTURE = "errors.png"
LATE = {"law": "block_law", "uniform": "block_law", "strided": "s2_attention", "window": "window"}
"""Rows of `rml.attention.METHODS` by what is compared."""


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Measures errors of layers, replaces half of the layers, draws."""
    check(config)
    metrics = {f"keys_{name}": count for name, count in keys(config).items()}
    loaded = pretrained.load(config.late.name)
    decoder = Decoder(loaded.module, loaded.variables)
    if max(config.measured_layers) >= decoder.depth:
        raise UserError(
            f"measured_layers is {config.measured_layers}, expected less than {decoder.depth}"
        )
    texts = speeches(config, "test", loaded.tokenizer, config.late.length)
    text = texts[np.random.default_rng(config.seed).permutation(len(texts))[0]]
    layers = list(decoder.exact(text, tuple(config.measured_layers)).captured.values())
    of_errors, of_sums = (
        jax.random.split(jax.random.key(config.seed + i), config.draws) for i in (1, 2)
    )
    found = errors(compared(config), layers, of_errors)
    metrics |= summarised(found)
    metrics |= sums(laws(config)["harmonic"], layers, of_sums, block=config.block)
    block_law_figures.of_laws(run, laws(config), config.late.length // config.block)
    block_law_figures.of_errors(run, found, config.measured_layers)
    Progress().note(f"gain over uniform draws: {metrics['gain_over_uniform']:.3f}")

    def options_of(name: str, choice: Any) -> dict[str, Any]:
        return options(config, name, choice)

    chosen, lost = late.lost_late(config.late, LATE, options_of, seed=config.seed)
    gains = {"late_gain_over_window": "law", "late_gain_of_uniform_over_window": "uniform"}
    metrics |= late.summarised(config.late.tries, chosen, lost, gains)
    for name in ("uniform", "strided"):
        metrics |= with_bounds(f"late_gain_over_{name}", t_interval(lost[name] - lost["law"]))
    block_law_figures.of_lost(run, lost)
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless texts are whole blocks, of which a part is kept."""
    n = config.late.length // config.block
    if config.late.length % config.block or not 1 < config.budget < (n + 1) / 2:
        raise UserError(
            f"block={config.block} and budget={config.budget} for {config.late.length} tokens, "
            f"expected whole blocks and 1 to {(n + 1) / 2:g}, the mean of causal attention"
        )
    late.check_tries(config.late.tries, LATE)


def laws(config: Any) -> dict[str, Law]:
    """The laws that are drawn, by kind."""
    kinds = ("harmonic", "geometric", "uniform")
    return {kind: Law(kind, config.budget, config.gamma) for kind in kinds}


def options(config: Any, name: str, choice: Any) -> dict[str, Any]:
    """Options of a row of `METHODS` at the keys of the law.

    Args:
      config: The run's config.
      name: What is compared, a key of `LATE`.
      choice: Kind of the law, whether a uniform draw is reweighted, stride, or sinks.
    """
    n, block = config.late.length, config.block
    if name == "law":
        return {"block": block, "law": laws(config)[choice]}
    if name == "uniform":
        return {"block": block, "law": laws(config)["uniform"]._replace(reweight=choice)}
    if name == "strided":
        sizes = range(1, n // block)
        local = min(
            sizes, key=lambda one: abs(_blocks_of_stride(config, one, choice) - config.budget)
        )
        own = {"block": block, "local": local, "stride": choice}
        return own | {"shards": 1, "covering": False}
    width = window_width((config.budget - 1) * block + (block + 1) / 2, n, sinks=choice)
    return {"width": width, "sinks": choice}


def _blocks_of_stride(config: Any, local: int, stride: int) -> float:
    n = config.late.length // config.block
    seen = shard_pattern(n, heads=1, shards=1, local=local, stride=stride)
    return float(seen.sum()) / n


def keys(config: Any) -> dict[str, float]:
    """Keys that a query sees on average, of each method with its first choice; exact ones too."""
    n, block = config.late.length, config.block
    found = {"exact": (n + 1) / 2}
    inside = (block - 1) / 2  # keys of the own block that come later
    for name in ("law", "uniform", "strided", "window"):
        own = options(config, name, config.late.tries[name][0])
        if name == "window":
            seen = np.minimum(np.arange(1, n + 1), own["width"] + own["sinks"])
            found[name] = float(seen.mean())
        elif name == "strided":
            blocks = _blocks_of_stride(config, own["local"], own["stride"])
            found[name] = blocks * block - inside
        else:
            share = causal_weights(n // block)
            blocks = float(share @ keep_probabilities(n // block, own["law"], share))
            found[name] = blocks * block - inside
    return found


def compared(config: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Rows of `METHODS` with options whose errors are measured; windows are shorter than half."""
    return {
        "harmonic": ("block_law", options(config, "law", "harmonic")),
        "geometric": ("block_law", options(config, "law", "geometric")),
        "uniform": ("block_law", options(config, "uniform", False)),
        "strided": ("s2_attention", options(config, "strided", config.late.tries.strided[0])),
        "window": ("window", options(config, "window", 0)),
        "window_sinks": ("window", options(config, "window", config.sinks)),
    }


def summarised(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean errors, and by how much logarithms differ, with intervals over layers and heads."""
    logs = {name: np.log(own) for name, own in found.items()}
    means = {name: own.mean(axis=0).ravel() for name, own in logs.items()}
    metrics = {f"error_{name}": float(np.exp(own.mean())) for name, own in means.items()}
    law = logs["harmonic"]
    pairs = {
        "gain_over_uniform": means["uniform"] - means["harmonic"],
        "gain_between_draws": (law[::2].mean(axis=0) - law[1::2].mean(axis=0)).ravel(),
        "gain_over_window": means["window"] - means["harmonic"],
        "gain_of_uniform_over_window": means["window"] - means["uniform"],
        "gain_over_window_sinks": means["window_sinks"] - means["harmonic"],
        "gain_over_strided": means["strided"] - means["harmonic"],
        "gain_of_geometric_over_window": means["window"] - means["geometric"],
    }
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics
