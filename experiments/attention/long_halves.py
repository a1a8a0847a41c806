"""One layer's exact attention on long texts, and errors of what approximates it at equal keys.

Queries are those of the second half of a text and keys those of its first half, as in
`experiments.attention.approximation`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention import approximation
from experiments.attention.approximation import Halves
from rml.attention import hyperplanes
from rml.attention.hyper_samples import HyperSettings, draw_samples
from rml.attention.hyperattention import sorted_part
from rml.ops.attention_parts import attend_part, merge_parts, scaled_logits


class Method(NamedTuple):
    """How queries attend.

    Attributes:
      settings: HyperAttention's; None for the nearest keys.
      apart: Keys that every query sees beside it, the first ones of a text.
      middle: Whether these are not the first ones but those in the middle.
    """

    settings: HyperSettings | None
    apart: int = 0
    middle: bool = False


def method_of(config: Any, name: str, choice: Any) -> Method:
    """The method of a name and one of its tries, see the config.

    Values that are sampled by their norms have as many samples as uniform ones, and again as many
    for sums of rows: at what is called equal keys they see more.
    """
    if name == "window":
        return Method(None, int(choice))
    if name == "unsorted":
        sampling, kappa = choice
        return Method(HyperSettings(0, samples=config.seen, sampling=sampling, kappa=kappa))
    apart = config.apart if name == "sinks" else 0
    share, changes = choice, {}
    if name == "value_norm":
        share, cap = choice
        changes = {"sampling": name, "cap": cap}
    if name == "sinks":
        share, sampling = choice
        changes = {"sampling": sampling}
    keys = config.seen - apart
    block = round(share * keys)
    return Method(HyperSettings(config.planes, block, keys - block)._replace(**changes), apart)


@functools.partial(jax.jit, static_argnames="block")
def exact_halves(
    query: jax.Array, key: jax.Array, value: jax.Array, *, first: int, block: int = 128
) -> tuple[Halves, jax.Array]:  # fmt: skip
    """Cuts a layer as `approximation.halves`, in memory that is linear in its tokens.

    Args:
      query: Queries [h, t, k].
      key: Keys [g, t, k].
      value: Values [g, t, k].
      first: Number of first keys that the second alpha is without.
      block: Queries that attend at once.

    Returns:
      The halves with exact outputs, and alpha [2, h] of all keys and of those after the first.
    """
    h, t, k = query.shape
    n, g = t // 2, len(key)
    query = query.reshape(g, h // g, t, k)[:, :, -n:]
    key, value = key[:, :n], value[:, :n]
    counted = jnp.arange(n) >= jnp.array([0, first])[:, None]  # keys, of either alpha
    blocks = -(-n // block)
    padded = jnp.pad(query, [(0, 0), (0, 0), (0, blocks * block - n), (0, 0)])
    there = (jnp.arange(blocks * block) < n).reshape(blocks, block)

    def of_block(columns: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        query, there = one
        logits = scaled_logits(query, key[:, None], k**-0.5)

        def squares(counted: jax.Array) -> jax.Array:
            weights = jax.nn.softmax(jnp.where(counted, logits, -jnp.inf), axis=-1)
            return jnp.where(there[:, None], jnp.square(weights), 0.0).sum(axis=-2)

        out = jax.nn.softmax(logits, axis=-1) @ value[:, None]
        return columns + jax.vmap(squares)(counted), out

    by_block = jnp.moveaxis(padded.reshape(g, h // g, blocks, block, k), 2, 0)
    columns, out = jax.lax.scan(of_block, jnp.zeros((2, g, h // g, n)), (by_block, there))
    out = jnp.moveaxis(out, 0, 2).reshape(*padded.shape[:-1], -1)[:, :, :n]
    return Halves(query, key, value, out), n * columns.max(axis=-1).reshape(2, h)


@functools.partial(jax.jit, static_argnames=("method", "keys"))
def log_errors(part: Halves, rngs: Any, *, method: Method, keys: int) -> jax.Array:
    """Logarithms of relative errors [draws, h] of a method that sees so many keys a query.

    Args:
      part: Halves of a layer.
      rngs: Random keys, one a draw.
      method: How queries attend.
      keys: Keys of the window; `method.settings` has those of HyperAttention.
    """
    settings = method.settings
    if settings is None:
        error = approximation.errors_of_recent(part, keys=keys, sinks=method.apart)
        return jnp.broadcast_to(jnp.log(error), (len(rngs), *error.shape))
    n, width = part.key.shape[1:]
    start = n // 2 if method.middle else 0
    place = np.arange(n)
    own = (place >= start) & (place < start + method.apart)
    (apart,), (rest,) = np.nonzero(own), np.nonzero(~own)
    key, value = part.key[:, rest], part.value[:, rest]
    here = jnp.ones(key.shape[:-1], bool)

    def of_one(rng: Any) -> jax.Array:
        of_planes, of_samples = jax.random.split(rng)
        planes = hyperplanes(of_planes, settings.planes, width) if settings.planes else None
        drawn = draw_samples(of_samples, value, here, settings)
        found = sorted_part(part.query, key, value, here, planes, drawn, settings, width**-0.5)
        if method.apart:
            one = part.key[:, None, apart], part.value[:, None, apart]
            found = merge_parts(attend_part(part.query, *one), found)
        return found.out

    return jnp.log(jax.lax.map(lambda rng: approximation.relative(of_one(rng), part.out), rngs))
