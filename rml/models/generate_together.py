"""Texts continued by several decoders in step, each through a cache of its own."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Int

from rml.models.block_hooks import Thresholds
from rml.models.live_rows import LiveRows
from rml.models.llama import Llama

Combine = Callable[[tuple[Array, ...]], tuple[Array, Any]]
"""What is made of the logits of several decoders, see `generate_together`."""


class Member(struct.PyTreeNode):
    """A decoder that writes with others.

    Attributes:
      module: The decoder.
      variables: Its variables.
      stacked: Whether they are those of several decoders, on a leading axis.
      thresholds: What it takes as thresholds, stacked likewise.
      rows: What it reads its MLPs of, stacked likewise.
    """

    module: Llama = struct.field(pytree_node=False)
    variables: Any
    stacked: bool = struct.field(pytree_node=False, default=False)
    thresholds: Thresholds | None = None
    rows: LiveRows | None = None

    def read(self, tokens: Array, mask: Array | None, cache: Any) -> tuple[Array, Any]:
        """Computes the last hidden states [b, t, d], and the cache that has read the tokens."""

        def one(variables: Any, cache: Any, thresholds: Any, rows: Any) -> tuple[Array, Any]:
            states: Any = self.module.apply(
                variables, tokens, mask, cache=cache, thresholds=thresholds, rows=rows
            )
            return states.last, states.cache

        call = jax.vmap(one) if self.stacked else one
        return call(self.variables, cache, self.thresholds, self.rows)

    def logits(self, hidden: Array) -> Array:
        """Computes logits of the next token [b, v] after hidden states [b, d]."""

        def one(variables: Any, hidden: Array) -> Any:
            return self.module.apply(variables, hidden, method="logits")

        return (jax.vmap(one) if self.stacked else one)(self.variables, hidden)

    def init_cache(self, texts: int, tokens: int) -> Any:
        """Makes an empty cache, with an axis of decoders where there are several."""
        cache = self.module.init_cache(texts, tokens)
        if not self.stacked:
            return cache
        count = len(jax.tree.leaves(self.variables)[0])
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), cache)


class Together(NamedTuple):
    """What several decoders wrote.

    Attributes:
      tokens: The tokens added [b, n].
      found: What `combine` kept at each of them, with a leading axis n.
    """

    tokens: Array
    found: Any


def generate_together(
    members: Sequence[Member],
    combine: Combine,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    steps: int,
    stop: int | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> Together:
    """Continues every text by several decoders in step, each with a cache of its own.

    Args:
      members: Decoders of one vocabulary.
      combine: `combine(logits) -> (logits, found)`, what is made of the logits that every member
        gives the next token, [b, v], or [t, b, v] of stacked ones, and what else is kept of it.
        It is part of the program: an equal one, such as one function of a module, is compiled once.
        So is a `jax.tree_util.Partial` of it, whose arguments are arrays and may differ.
      tokens: The texts, at least one token each.
      mask: Which tokens are text rather than padding, on either side; all if not given.
      steps: Number of tokens to add.
      stop: Token that ends a text and from then on repeats.
      temperature: 0 takes the most probable token, otherwise tokens are drawn from
        softmax(logits / temperature) of the combined logits.
      key: A typed key to draw with.

    Returns:
      The tokens added, and what was found at each.

    Raises:
      ValueError: There is no member, they have different vocabularies, `steps` is below 1, the
        temperature is negative or not finite, or one above 0 came without a key.
    """
    check_steps(steps, temperature, key)
    sizes = {member.module.vocabulary for member in members}
    if len(sizes) != 1:
        raise ValueError(f"members have vocabularies of {sorted(sizes)} tokens, expected one size")
    b, t = tokens.shape
    caches = tuple(member.init_cache(b, t + steps - 1) for member in members)
    heat = temperature or None
    own = combine if isinstance(combine, Partial) else Partial(combine)
    return written(tuple(members), caches, own, tokens, mask, key, steps, stop, heat)


def check_steps(steps: int, temperature: float, key: jax.Array | None) -> None:
    """Raises `ValueError` for no steps, for what is no temperature, or for draws without a key."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    if temperature and key is None:
        raise ValueError(f"temperature={temperature} draws tokens and needs a key")


@functools.partial(jax.jit, static_argnames="steps")
def written(
    members: tuple[Member, ...],
    caches: tuple[Any, ...],
    combine: Partial,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None,
    key: jax.Array | None,
    steps: int,
    stop: jax.Array | None,
    temperature: jax.Array | None,
) -> Together:
    """Reads the texts, then writes a token at a time; without a temperature the most probable."""
    if mask is None:
        mask = jnp.ones(tokens.shape, bool)

    def next_token(hidden: list[Array], step: Any) -> tuple[Array, Any]:
        logits = tuple(own.logits(h) for own, h in zip(members, hidden, strict=True))
        together, found = combine(logits)
        if key is None or temperature is None:
            return jnp.argmax(together, axis=-1).astype(tokens.dtype), found
        drawn = jax.random.categorical(jax.random.fold_in(key, step), together / temperature)
        return drawn.astype(tokens.dtype), found

    def read(token: Array, mask: Array | None, caches: Any) -> tuple[list[Array], list[Any]]:
        found = [own.read(token, mask, c) for own, c in zip(members, caches, strict=True)]
        return [hidden for hidden, _ in found], [cache for _, cache in found]

    def body(carry: tuple[Any, Array], step: Array) -> tuple[Any, Any]:
        caches, token = carry
        hidden, caches = read(token[:, None], None, caches)
        new, found = next_token([own[..., 0, :] for own in hidden], step)
        if stop is not None:
            new = jnp.where(token == stop, token, new)
        return (caches, new), (new, found)

    hidden, filled = read(tokens, mask, caches)
    last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)

    def ends(hidden: Array) -> Array:
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

    ended = [jax.vmap(ends)(own) if own.ndim > 3 else ends(own) for own in hidden]
    first, found = next_token(ended, 0)
    _, (rest, others) = jax.lax.scan(body, (filled, first), jnp.arange(1, steps))
    found = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), found, others)
    return Together(jnp.concatenate([first[:, None], rest.T], axis=1), found)
