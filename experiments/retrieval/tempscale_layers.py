"""What the recipe of TempScale measures of the encoder: its filter rate by layer, its time."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.timing import median_ratio
from experiments.retrieval.tempscale_methods import TEMPERED, Embedders
from rml.data.tokens import encode as tokenised
from rml.evaluation import attention_maps, log_log_slopes
from rml.models.text_encoder import TextEncoder
from rml.ops import t_interval
from rml.retrieval import Tuned, temper
from rml.training import RunDirectory


def measure_filter(
    config: Any, run: RunDirectory, embedders: Embedders, texts: Sequence[str]
) -> dict[str, float]:
    """The filter rate against length, at temperature 1 and at the lowest; drawn, by layer too."""
    cuts, lowest = sorted(config.cuts), min(config.candidates[TEMPERED])
    rates = {
        value: filter_rates(embedders, value, texts[: config.filter_texts], cuts)
        for value in (1.0, lowest)
    }
    label = "tokens (log₂)"
    bands = {
        f"temperature {name:g}": (np.log2(cuts), *t_interval(own.mean(-1).T))
        for name, own in rates.items()
    }
    figures.curves(run.figure("filter_rate.png"), bands, label, "filter rate")
    layers = {
        f"layer {i + 1}": (np.log2(cuts), *t_interval(own.T))
        for i, own in enumerate(np.moveaxis(rates[1.0], -1, 0))
    }
    figures.curves(run.figure("filter_rate_layers.png"), layers, label, "filter rate", above=True)
    return slopes(cuts, rates[1.0], rates[lowest], config.seed)


def filter_rates(
    embedders: Embedders, temperature: float, texts: Sequence[str], cuts: Sequence[int]
) -> np.ndarray:
    """Means over heads of the filter rate of texts cut to lengths, [texts, cuts, layers]."""
    model = embedders.model
    tuned = Tuned(embedders.variables, jnp.float32(temperature))
    rows = tokenised(model.tokenizer, texts, max_length=max(cuts))
    return np.array([
        [_rates(model.module, tuned, jnp.asarray(row), length) for length in cuts] for row in rows
    ])  # fmt: skip


@partial(jax.jit, static_argnames=("module", "length"))
def _rates(module: TextEncoder, tuned: Tuned, tokens: jax.Array, length: int) -> jax.Array:
    """Filter rates of the first tokens of a text, [layers]."""
    backbone: Any = temper(module, tuned.value).backbone
    own = {"params": tuned.variables["params"]["backbone"]}
    mask = jnp.ones((1, length), bool)
    states = backbone.apply(own, tokens[None, :length], mask, return_attention=True)
    return jnp.mean(attention_maps(states.attention[:, 0]).filter_rate, axis=-1)


def slopes(
    cuts: Sequence[int], plain: np.ndarray, lowest: np.ndarray, seed: int
) -> dict[str, float]:
    """Log-log slopes of filter rates over length, with intervals over texts.

    Args:
      cuts: The lengths.
      plain: Rates at temperature 1, [texts, cuts, layers].
      lowest: Rates at the lowest temperature.
      seed: Seed of what nulls draw: an order of lengths, and whose temperatures are exchanged.

    Returns:
      Of the mean over layers the slope, and what it gains at the lowest temperature; of each layer
      both; of the layer of the highest slope, and of that of the least gain, once more with nulls.
    """
    rng = np.random.default_rng(seed)
    # Were temperatures without effect, the two rates of every second text could be exchanged.
    signs = np.random.default_rng([seed, 1]).permutation(np.resize((1.0, -1.0), len(plain)))

    def of(rates: np.ndarray) -> np.ndarray:
        return log_log_slopes(cuts, np.moveaxis(rates, 1, -1))

    shuffled = rng.permuted(plain.mean(-1), axis=1)
    one, other = of(plain.mean(-1)), of(lowest.mean(-1))
    values = {
        "filter_slope": one,
        "filter_slope_permuted": of(shuffled),
        "filter_slope_gain": other - one,
        "filter_slope_gain_exchanged": (other - one) * signs,
    }
    by_layer = of(plain)  # [texts, layers]
    gains = of(lowest) - by_layer
    for i in range(plain.shape[-1]):
        values |= {f"filter_slope_layer_{i + 1}": by_layer[:, i]}
        values |= {f"filter_slope_gain_layer_{i + 1}": gains[:, i]}
    permuted = of(rng.permuted(plain, axis=1))
    for name, each in (("", by_layer), ("_permuted", permuted)):
        values[f"filter_slope_flattest{name}"] = each[:, np.argmax(each.mean(0))]
    for name, each in (("", gains), ("_exchanged", gains * signs[:, None])):
        values[f"filter_slope_gain_least{name}"] = each[:, np.argmin(each.mean(0))]
    metrics: dict[str, float] = {}
    for name, each in values.items():
        metrics |= with_bounds(name, t_interval(each))
    return metrics


def measure_time(
    config: Any, embedders: Embedders, texts: Sequence[str], temperature: float
) -> dict[str, float]:
    """Seconds of encoding at a temperature over those of the encoder as it is."""
    model, longest = embedders.model, max(config.cuts)
    rows = tokenised(model.tokenizer, texts[: config.timed.texts], max_length=longest)
    tokens = jnp.stack([jnp.asarray(row[:longest]) for row in rows])
    mask = jnp.ones(tokens.shape, bool)
    plain, own = jax.jit(model.module.apply), jax.jit(embedders.tuned[TEMPERED])
    tuned = Tuned(embedders.variables, jnp.float32(temperature))
    ratio = median_ratio(
        lambda: own(tuned, tokens, mask),
        lambda: plain(embedders.variables, tokens, mask),
        repeats=config.timed.repeats,
    )
    return {"time_ratio": ratio}
