"""Texts read and continued by a decoder through its cache."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from rml.models.block_hooks import Thresholds
from rml.models.caches import Cache
from rml.models.generate_together import Member, check_steps, written
from rml.models.live_rows import LiveRows
from rml.models.llama import Llama


def generate(
    module: Llama,
    variables: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    steps: int,
    stop: int | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    cache: Cache | None = None,
    thresholds: Thresholds | None = None,
    rows: LiveRows | None = None,
) -> Int[Array, "b n"]:
    """Continues every text by `steps` tokens.

    Args:
      module: The decoder.
      variables: Its variables.
      tokens: The texts, at least one token each.
      mask: Which tokens are text rather than padding, on either side; all if not given. A padded
        text goes on as it would alone unless the model or the cache has a window, or the cache
        keeps blocks, segments or chunks, where padding takes the places of text. Where attention
        has a factor or a bias of places, one that is padded on the right does not either: what is
        added stands behind the padding.
      steps: Number of tokens to add.
      stop: Token that ends a text and from then on repeats.
      temperature: 0 takes the most probable token, otherwise tokens are drawn from
        softmax(logits / temperature).
      key: A typed key to draw with.
      cache: What keeps the tokens, of `Llama.init_cache`, perhaps with what was read before these;
        if not given, one with just the room for them.
      thresholds: Magnitudes below which activations are set to zero, in these texts too.
      rows: What one text's tokens are added by, see `Llama.__call__`; the given ones are read
        without them unless it is one token alone.

    Returns:
      The tokens added, of the dtype of `tokens`.

    Raises:
      ValueError: `steps` is below 1, the temperature is negative or not finite, one above 0 came
        without a key, or the cache has no room for all tokens but the last.
    """
    check_steps(steps, temperature, key)
    b, t = tokens.shape
    if cache is None:
        cache = module.init_cache(b, t + steps - 1)
    cache.check_room((b, t + steps - 1))
    members = (Member(module, variables, thresholds=thresholds, rows=rows),)
    heat = temperature or None
    return written(members, (cache,), Partial(_alone), tokens, mask, key, steps, stop, heat).tokens


def read_in_chunks(
    module: Llama,
    variables: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    cache: Cache,
    chunk: int,
    thresholds: Thresholds | None = None,
) -> tuple[Float[Array, "b t d"], Cache]:
    """Reads texts some tokens at a time through a cache, in the memory of one chunk's attention.

    Args:
      module: The decoder.
      variables: Its variables.
      tokens: The texts.
      mask: Which tokens are text rather than padding; all if not given.
      cache: What keeps the tokens, with room for all of them.
      chunk: Number of tokens that are read at a time; the last may be fewer.
      thresholds: Magnitudes below which activations are set to zero.

    Returns:
      The last hidden states of all tokens, and the cache that has read them.

    Raises:
      ValueError: The chunk is below 1, or the cache has no room.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    cache.check_room(tokens.shape)
    chunk = min(chunk, max(1, tokens.shape[1]))  # of a shorter text there is no whole one
    return _read(module, variables, tokens, mask, cache, chunk, thresholds)


@functools.partial(jax.jit, static_argnames=("module", "chunk"))
def _read(
    module: Llama,
    variables: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None,
    cache: Cache,
    chunk: int,
    thresholds: Thresholds | None,
) -> tuple[Float[Array, "b t d"], Cache]:
    if mask is None:
        mask = jnp.ones(tokens.shape, bool)
    b, t = tokens.shape
    number = t // chunk
    whole = number * chunk

    def step(cache: Cache, part: tuple[jax.Array, ...]) -> tuple[Cache, jax.Array]:
        states: Any = module.apply(variables, *part, cache=cache, thresholds=thresholds)
        return states.cache, states.last

    parts = (x[:, :whole].reshape(b, number, chunk).swapaxes(0, 1) for x in (tokens, mask))
    cache, hidden = jax.lax.scan(step, cache, tuple(parts))
    hidden = hidden.swapaxes(0, 1).reshape(b, whole, module.width)
    if whole < t:
        cache, rest = step(cache, (tokens[:, whole:], mask[:, whole:]))
        hidden = jnp.concatenate([hidden, rest], axis=1)
    return hidden, cache


def _alone(logits: tuple[Array, ...]) -> tuple[Array, None]:
    return logits[0], None
