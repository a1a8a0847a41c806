"""Caches that the recipe on staircase quantisation compares: their bytes, texts read by them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.layerwise import Decoder
from rml.attention import Staircase, bytes_held, staircase_cache
from rml.errors import UserError
from rml.evaluation.long_text import token_nats
from rml.models import read_in_chunks
from rml.ops import group_dequantize, group_quantize


def variants(config: Any, module: Any) -> dict[str, Staircase]:
    """The caches: "uniform" has the bytes of "staircase", "uniform_four" too, of 4 bits.

    "short" has the staircase's residual and its fewest bits; "four" and "eight" its residual.
    """
    bits, chunk, group = (config.staircase[key] for key in ("bits", "chunk", "group"))
    staircase = Staircase(tuple(bits), chunk, group)
    wanted = mean_bytes(config, module, staircase)

    def as_large(own: int) -> Staircase:
        sizes = range(group, config.length // 2, group)
        found = [Staircase((bits[0], own), size, group) for size in sizes]
        return min(found, key=lambda one: abs(mean_bytes(config, module, one) - wanted))

    return {
        "staircase": staircase,
        "uniform": as_large(bits[-1]),
        "uniform_four": as_large(4),
        "short": Staircase((bits[0], bits[-1]), chunk, group),
        "four": Staircase((bits[0], 4), chunk, group),
        "eight": Staircase((bits[0], 8), chunk, group),
    }


def mean_bytes(config: Any, module: Any, staircase: Staircase) -> float:
    """Bytes of one text's keys and values in all layers, on average over calls that read it.

    Counted is what a call finds, of those that read the last half, whose nats are compared.
    """
    heads, width = module.head_shape()
    lengths = range(config.length // 2, config.length, config.call)
    held = np.mean([bytes_held(staircase, length, width=width) for length in lengths])
    return float(module.depth * heads * held)


def whole_bytes(config: Any, module: Any) -> float:
    """The same of a cache of 16 bits."""
    return mean_bytes(config, module, Staircase((16, 16), config.call, config.staircase.group))


def read(config: Any, loaded: Any, texts: np.ndarray, staircase: Staircase | None) -> np.ndarray:
    """Nats [documents, t - 1] of texts that are read through a cache; all bits without one."""
    module, batch = loaded.module, len(texts)
    cache = (
        module.init_cache(batch, config.length)
        if staircase is None
        else staircase_cache(module, batch, config.length, staircase)
    )
    tokens = jnp.asarray(texts)
    hidden, _ = read_in_chunks(module, loaded.variables, tokens, cache=cache, chunk=config.call)
    return np.asarray(_nats(loaded.variables, hidden, tokens, module=module))


@functools.partial(jax.jit, static_argnames="module")
def _nats(variables: Any, hidden: jax.Array, tokens: jax.Array, *, module: Any) -> jax.Array:
    def head(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, method="logits")

    return jax.lax.map(lambda pair: token_nats(pair[0], head, pair[1]), (hidden, tokens))


def requantised(config: Any, decoder: Decoder, text: np.ndarray) -> dict[str, float]:
    """Squared error of keys that went down all steps over that of keys quantised once.

    Levels of b and of c bits are nested where 2^b - 1 divides 2^c - 1; "apart" has steps that are
    not, of 3 bits in the place of 4.
    """
    layers = tuple(config.measured_layers)
    if max(layers) >= decoder.depth:
        raise UserError(f"measured_layers is {layers}, expected less than {decoder.depth}")
    bits, group = tuple(config.staircase.bits[1:]), config.staircase.group

    def rounded(x: jax.Array, own: int) -> jax.Array:
        codes = group_quantize(x, bits=own, group=group, axis=1)
        return group_dequantize(codes, axis=1)

    found: dict[str, list[float]] = {}
    for _, key, _ in decoder.exact(text, layers).captured.values():
        key = key[:, : key.shape[1] // group * group]
        once = jnp.square(rounded(key, bits[-1]) - key).mean()
        steps = {"": bits, "_apart": tuple(3 if own == 4 else own for own in bits)}
        for ending, own in steps.items():
            error = jnp.square(functools.reduce(rounded, own, key) - key).mean()
            found.setdefault(f"error_of_steps{ending}", []).append(float(error / once))
    return {name: float(np.mean(own)) for name, own in found.items()}
