"""Softmax attention in parts: each part has its output and its log-sum-exp, which merge exactly.

A query's keys may be cut in any way: into blocks, into those that are sorted near it and those that
are sampled, into those of each device. A part is attention to some of the keys, with the logarithm
of the sum of their exponentials; `merge_parts` makes of several what one softmax over all of them
gives.

Source: the merge is the associative form of online softmax (Milakov & Gimelshein, 2018).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rml.ops.shapes import check_between

OfPlaces = Callable[[Int[Array, " t"], Int[Array, " s"]], Float[Array, "#h #t #s"]]
"""What logits are multiplied by or what is added to them, of the places of queries and of keys. It
holds no traced arrays, and is finite where a key is hidden too."""


@dataclass(frozen=True)
class OfBlocks:
    """A law of places that tells in which blocks they lie, and not only how far they are apart.

    Attributes:
      law: The law.
    """

    law: OfPlaces

    def __call__(
        self, queries: Int[Array, " t"], keys: Int[Array, " s"]
    ) -> Float[Array, "#h #t #s"]:
        """Returns the law's factors or biases."""
        return self.law(queries, keys)


class Part(NamedTuple):
    """Attention to some of the keys.

    Attributes:
      out: [..., t, v], zero where a query sees none of the keys; float32 or wider.
      lse: [..., t], logarithm of the sum of the exponentials of its logits; -inf where none.
    """

    out: jax.Array
    lse: jax.Array


class Visible(NamedTuple):
    """Which keys a query may see, without a matrix of queries and keys.

    Attributes:
      keys: [b, s], which keys are there rather than padding; None where all are.
      causal: Whether a query sees no key after its own place.
      window: Number of last keys, its own included and at least 1, that a query sees, and as many
        later ones where attention is not causal; None for all.
      sinks: Number of first keys that every query sees beyond the window.
      start: Place of the first query among the keys.
    """

    keys: Bool[Array, "b s"] | None = None
    causal: bool = False
    window: int | Int[Array, ""] | None = None
    sinks: int = 0
    start: int | Int[Array, ""] = 0

    def pairs(self, queries: Int[Array, " t"], keys: Int[Array, " s"]) -> Bool[Array, "t s"]:
        """Tells whether each query may see each key, of which only places are given."""
        behind = queries[:, None] - keys
        seen = jnp.ones(behind.shape, bool)
        if self.causal:
            seen &= behind >= 0
        if self.window is not None:
            near = behind < self.window
            if not self.causal:
                near &= behind > -self.window
            seen &= near | (keys < self.sinks)
        return seen

    def require_whole(self, method: str) -> None:
        """Raises a ValueError that names a window or a start, which the method does not see."""
        if self.window is not None or not isinstance(self.start, int) or self.start:
            raise ValueError(
                f"{method} takes no window and no start, got window={self.window} and "
                f"start={self.start}"
            )

    def require_distances(self, *laws: OfPlaces | None) -> None:
        """Raises a ValueError where a law of places meets a window that moves and hides from it.

        Of a text that is longer than a cache, the sinks and the window lie side by side: places no
        longer tell how far a query is from a sink, and without sinks not in which block either is.
        A start that is an array is taken for that of such a cache.
        """
        moves = self.window is not None and isinstance(self.start, jax.Array)
        if moves and any(isinstance(law, OfBlocks) for law in laws):
            raise ValueError(
                "a factor or bias of blocks takes no window whose start is an array: where a cache "
                "drops tokens, places do not tell blocks; expected a cache with a length, of a "
                "model without a window"
            )
        if self.sinks and moves and any(law is not None for law in laws):
            raise ValueError(
                f"a factor or bias of places takes no sinks={self.sinks} beside a window whose "
                "start is an array: where a cache drops tokens between them, places are no "
                "distances; expected a cache without sinks or with a length"
            )

    def dense(self, queries: Any, keys: Any) -> Bool[Array, "#b t s"]:
        """Makes the matrix of who sees whom; for short texts, tests and figures.

        Args:
          queries: Number of queries, which may be symbolic where a program is exported.
          keys: Number of keys, likewise.
        """
        seen = self.pairs(self.start + jnp.arange(queries), jnp.arange(keys))[None]
        return seen if self.keys is None else seen & self.keys[:, None]


def check_attention(
    query: Array, key: Array, value: Array, visible: Visible, scale: float | None
) -> None:
    """Compares the shapes of queries, keys and values, of which broadcasting would hide some.

    Args:
      query: Queries, to be [b, h, t, k].
      key: Keys, to be [b, g, s, k], where g divides h.
      value: Values, to be [b, g, s, v].
      visible: Keys that a query may see; its mask is to be [b, s].
      scale: Factor of the logits, to be at least 0.

    Raises:
      ValueError: If an array has another number of axes, lengths differ or one is 0, with all
        shapes, or the scale is a number below 0.
    """
    mask = None if visible.keys is None else jnp.shape(visible.keys)
    shapes = query.shape, key.shape, value.shape
    fits = all(len(shape) == 4 for shape in shapes)
    if fits:
        (b, h, _, k), (_, g, s, _), (*_, v) = shapes
        fits = shapes[1:] == ((b, g, s, k), (b, g, s, v)) and mask in (None, (b, s))
    if not fits:
        masked = "" if mask is None else f" and a mask {mask} of keys as [b, s]"
        raise ValueError(
            f"attention takes queries [b, h, t, k], keys [b, g, s, k] and values [b, g, s, v], got "
            f"shapes {shapes[0]}, {shapes[1]} and {shapes[2]}{masked}"
        )
    if not all((*query.shape, *key.shape, *value.shape)):
        raise ValueError(
            f"attention takes axes of length 1 or more, got queries {shapes[0]}, keys {shapes[1]} "
            f"and values {shapes[2]}"
        )
    if h % g:
        raise ValueError(f"{g} heads of keys must divide {h} heads of queries")
    check_between(0, scale=scale)


def attend_part(
    query: Float[Array, "*h t k"],
    key: Float[Array, "*#h s k"],
    value: Float[Array, "*#h s v"],
    mask: Bool[Array, "*#h #t s"] | None = None,
    *,
    scale: float | None = None,
    log_weights: Float[Array, "*#h #t s"] | None = None,
) -> Part:
    """Attends to some of the keys.

    Args:
      query: Queries.
      key: Keys of this part.
      value: Values of these keys.
      mask: Mask of those that a query may see; all by default.
      scale: Factor of the logits; k^-1/2 by default.
      log_weights: Added to the logits: the logarithm of how many keys each one stands for, as of
        a sample.

    Returns:
      Output and log-sum-exp, float32 or wider. They and their gradients are finite where a query
      sees nothing, except for the log-sum-exp itself, which is -inf.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = scaled_logits(query, key, query.shape[-1] ** -0.5 if scale is None else scale)
    if log_weights is not None:
        logits = logits + log_weights
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    top = lax.stop_gradient(finite_top(logits.max(axis=-1, keepdims=True)))
    raised = jnp.exp(logits - top)
    total = raised.sum(axis=-1, keepdims=True)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    out = jnp.einsum(
        "...ts,...sv->...tv", raised.astype(value.dtype), value, preferred_element_type=wide
    )
    lse = jnp.where(some, jnp.log(total) + top, -jnp.inf)
    return Part(out / total, lse[..., 0])


def merge_parts(*parts: Part) -> Part:
    """Merges parts whose keys are disjoint into attention to all of their keys.

    Args:
      *parts: One part or more, of the same queries.

    Returns:
      The part of all keys. It is exact however the keys were cut, and associative.

    Raises:
      ValueError: If there is no part.
    """
    if not parts:
        raise ValueError("merge_parts needs at least one part, got none")
    lses = jnp.stack([part.lse for part in parts])
    top = lax.stop_gradient(finite_top(lses.max(axis=0)))
    raised = jnp.exp(lses - top)
    total = raised.sum(axis=0)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    shares = raised / total
    out = sum(share[..., None] * part.out for share, part in zip(shares, parts, strict=True))
    return Part(jnp.asarray(out), jnp.where(some, jnp.log(total) + top, -jnp.inf))


def finite_top(top: Array) -> Array:
    """Returns the greatest logit, 0 where there is none: what exponentials are shifted by."""
    return jnp.where(jnp.isfinite(top), top, 0.0)


def scaled_logits(query: Array, key: Array, scale: float) -> Array:
    """Computes products of queries and keys times the scale, float32 or wider."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    return jnp.einsum("...tk,...sk->...ts", query, key, preferred_element_type=wide) * scale
