"""What an extended language model makes of long texts: nats by scale, length and position."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.late import speeches
from experiments.attention.length_methods import (
    FEWER,
    LONG,
    PLAIN,
    TAUGHT,
    TITLES,
    UNTRAINED,
    scaled,
    unseen,
)
from experiments.common import figures, small_lm
from rml.evaluation.long_text import by_position, token_nats
from rml.models import Llama
from rml.models.attention import attend
from rml.training import RunDirectory


def long_texts(config: Any, tokenizer: Any) -> dict[str, np.ndarray]:
    """Beginnings of long documents of the validation and the test split, [n, longest]."""
    length = config.text.length * config.long.multiples[-1]
    return {
        part: speeches(config, part, tokenizer, length)[: config.long[part]]
        for part in ("validation", "test")
    }


def nats(config: Any, params: Any, texts: np.ndarray, way: str) -> np.ndarray:
    """Nats of tokens 1 to t - 1 of texts by every scale, [scales, texts, t - 1].

    Texts that begin as these do have these nats, since a token does not see those after it.

    Args:
      config: The run's config.
      params: A model's parameters.
      texts: Tokens [texts, t].
      way: One of `UNTRAINED`: what a scale does to the positions or to the frequencies.
    """
    module = small_lm.language_model(config, attend)
    found = []
    for scale in config.long.scales:
        m = jnp.arange(texts.shape[1], dtype=jnp.float32)
        own = module
        if way == "interpolated":
            m = m / scale
        else:
            own = scaled(module, way, scale)
        found.append(_nats(own, params, texts, m))
    return np.stack(found)


def summarised(
    config: Any, found: dict[str, dict[str, np.ndarray]]
) -> tuple[dict[str, float], dict[tuple[str, int], int]]:
    """Metrics, and of each model and length the place of the scale that is best on validation.

    A text of k windows counts by the tokens of its last half. Differences are paired: each has the
    95% interval over texts of its mean.
    """
    scales = list(config.long.scales)
    window = config.text.length

    def of_texts(values: np.ndarray, k: int) -> Any:
        return values[..., k * window // 2 - 1 : k * window - 1].mean(-1)

    def at(values: np.ndarray, k: int) -> Any:
        return of_texts(values, k).mean(-1)

    chosen, means, own, metrics = {}, {}, {}, {}
    for name, parts in found.items():
        for k in config.long.multiples:
            chosen[name, k] = int(np.argmin(at(parts["validation"], k)))
            own[name, k] = of_texts(parts["test"], k)[chosen[name, k]]
            means[name, k] = float(own[name, k].mean())
            metrics[f"nats_{name}_{k}x"] = means[name, k]
            metrics[f"scale_{name}_{k}x"] = float(scales[chosen[name, k]])
    start = found[UNTRAINED[0]]
    for k in config.long.multiples:
        plain = at(start["test"], k)[scales.index(1)]
        means["extrapolated", k] = metrics[f"nats_extrapolated_{k}x"] = float(plain)
    best = {
        k: min(UNTRAINED, key=lambda name: at(found[name]["validation"], k)[chosen[name, k]])
        for k in config.long.multiples
    }
    largest, beyond = scales.index(config.extension.largest), scales.index(unseen(config))
    pairs = {}
    for name, ending in ((TAUGHT, ""), (FEWER, "_fewer"), (PLAIN, "_plain")):
        for k in config.long.multiples[1:]:
            pairs[f"gain_{k}x{ending}"] = own[best[k], k] - own[name, k]
        pairs[f"beyond_long_8x{ending}"] = own[name, 8] - own[LONG, 8]
    for k, ending in ((16, ""), (1, "_1x")):
        for part in ("scale", "offset"):
            pairs[f"lost_without_{part}{ending}"] = own[f"no_{part}", k] - own[TAUGHT, k]
    metrics |= small_lm.differences(pairs)
    metrics |= {
        "rise_16x": means[TAUGHT, 16] / means[TAUGHT, 1] - 1,
        "rise_16x_extrapolated": means["extrapolated", 16] / means["extrapolated", 1] - 1,
    }
    # A model and its null are read at the same scales, so that they differ by training alone.
    for ending, name in (("", TAUGHT), ("_of_base", UNTRAINED[0])):
        short, long = (at(found[name]["test"], k) for k in (1, 16))
        metrics[f"rise_largest{ending}"] = float(short[largest]) / means["extrapolated", 1] - 1
        metrics[f"rise_unseen{ending}"] = float(long[beyond] / long[largest]) - 1
    return metrics, chosen


def draw(config: Any, run: RunDirectory, found: Any, chosen: dict[tuple[str, int], int]) -> None:
    """Draws nats against length, and those of the extended model against position by scale."""
    window, multiples = config.text.length, list(config.long.multiples)

    def by_length(name: str) -> np.ndarray:
        """Means over the last half of texts of every length, [lengths, texts]."""
        values = found[name]["test"]
        return np.stack([
            values[chosen[name, k]][:, k * window // 2 - 1 : k * window - 1].mean(-1)
            for k in multiples
        ])  # fmt: skip

    beyond = {name: by_length(name) - by_length(TAUGHT) for name in found if name != TAUGHT}
    series: dict[str, Any] = {
        TITLES[name]: (np.log2(multiples), *figures.band(values)) for name, values in beyond.items()
    }
    figures.curves(
        run.figure("lengths.png"), series, "windows of the base model (log₂)",
        "nats a token beyond E²-LLM's", reference=(TITLES[TAUGHT], 0.0),
    )  # fmt: skip
    edges = [1, *(window * k for k in multiples)]
    middles = (np.array(edges[:-1]) + edges[1:]) / 2
    series = {}
    for place, scale in enumerate(config.long.scales):
        bins = by_position(found[TAUGHT]["test"][place], edges).T
        series[f"scale {scale:g}"] = (np.log2(middles / window), *figures.band(bins))
    figures.curves(
        run.figure("scales.png"), series, "position, windows (log₂)", "nats a token",
        upright=("trained window", 0.0),
    )  # fmt: skip


def _nats(module: Llama, params: Any, texts: np.ndarray, positions: jax.Array) -> np.ndarray:
    found = [_text_nats(module, params, text, positions) for text in texts]
    return np.asarray(jax.device_get(found))


@functools.partial(jax.jit, static_argnames="module")
def _text_nats(module: Llama, params: Any, text: jax.Array, positions: jax.Array) -> jax.Array:
    variables = {"params": params}

    def head(hidden: jax.Array) -> jax.Array:
        return jnp.asarray(module.apply(variables, hidden, method="logits"))

    hidden = jnp.asarray(module.apply(variables, text[None], positions=positions[None]))
    return token_nats(hidden[0], head, text)
