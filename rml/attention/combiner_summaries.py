"""Summaries of regions by which Combiner attends to what is far.

Ren et al., Combiner, arXiv:2107.05768, section 3.1: a region is known by a query and a key that
pool those of its tokens, and by the expected value given that query.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from rml.ops.attention_parts import attend_part, finite_top

Pool = Literal["max", "mean", "sum"]


class DeepSet(NamedTuple):
    """Weights of summaries by DeepSets: a region's vectors x go through relu(x W) before they pool.

    One layer without offset, shared by heads, as in the authors' TensorFlow code. What a query
    attends to directly, and what a region's value is an expectation of, is not changed.

    Attributes:
      query: W of queries.
      key: W of keys.
    """

    query: Float[Array, "k k"]
    key: Float[Array, "k k"]


class Pooling(NamedTuple):
    """How a region's queries and keys become one.

    Attributes:
      pool: Over each coordinate.
      deep: What vectors go through before; nothing if not given.
    """

    pool: Pool = "max"
    deep: DeepSet | None = None

    def vectors(self, tokens: "Tokens") -> tuple[Array, Array]:
        """The queries and keys that are pooled."""
        if self.deep is None:
            return tokens.query, tokens.key
        return jax.nn.relu(tokens.query @ self.deep.query), jax.nn.relu(tokens.key @ self.deep.key)


class Tokens(NamedTuple):
    """Tokens, or the summaries of regions, along the last axis but one.

    Attributes:
      query: [*b, t, k].
      key: [*#b, t, k].
      value: [*#b, t, v].
      here: [*#b, t], which are there rather than padding or an empty region.
    """

    query: Float[Array, "*b t k"]
    key: Float[Array, "*c t k"]
    value: Float[Array, "*d t v"]
    here: Bool[Array, "*e t"]

    def rows(self, size: int) -> "Tokens":
        """The same in rows of a size, [*b, rows, size, k]."""
        here = self.here.reshape(*self.here.shape[:-1], -1, size)
        query, key, value = (x.reshape(*x.shape[:-2], -1, size, x.shape[-1]) for x in self[:3])
        return Tokens(query, key, value, here)

    def turned(self) -> "Tokens":
        """Rows as columns."""
        query, key, value = (x.swapaxes(-3, -2) for x in self[:3])
        return Tokens(query, key, value, self.here.swapaxes(-2, -1))

    def reversed(self) -> "Tokens":
        """The same in the opposite order."""
        query, key, value = (x[..., ::-1, :] for x in self[:3])
        return Tokens(query, key, value, self.here[..., ::-1])


def summaries(tokens: Tokens, pooling: Pooling, scale: float) -> Tokens:
    """The summary of each row: its pooled query and key, and its expected value given that query.

    Args:
      tokens: [*b, rows, size, k].
      pooling: Of queries and keys.
      scale: Factor of the logits.

    Returns:
      Summaries [*b, rows, k]; one of padding alone is not there.
    """
    query, key = (pooled(x, tokens.here, pooling.pool) for x in pooling.vectors(tokens))
    mask = tokens.here[..., None, :]
    value = attend_part(query[..., None, :], tokens.key, tokens.value, mask, scale=scale).out
    return Tokens(query, key, value[..., 0, :], tokens.here.any(axis=-1))


def before(tokens: Tokens, pooling: Pooling, scale: float) -> Tokens:
    """At each place the summary of all earlier places, of the same shapes; none at the first."""
    n = tokens.here.shape[-1]
    shifted = jnp.roll(tokens.here, 1, axis=-1) & (jnp.arange(n) > 0)
    query, key = (
        pooled(jnp.roll(x, 1, axis=-2), shifted, pooling.pool, running=True)
        for x in pooling.vectors(tokens)
    )
    mask = others(n, True) & tokens.here[..., None, :]
    value = attend_part(query, tokens.key, tokens.value, mask, scale=scale).out
    return Tokens(query, key, value, jnp.cumsum(shifted, axis=-1) > 0)


def pooled(
    x: Float[Array, "*b n k"], here: Bool[Array, "*c n"], pool: Pool, *, running: bool = False
) -> Float[Array, "..."]:
    """Maximum, mean or sum over vectors that are there, 0 where none is.

    Args:
      x: Vectors.
      here: Which of them are there.
      pool: Which of them.
      running: Whether to give one for every place, of all vectors up to it.
    """
    here = here[..., None]
    if pool == "max":
        filled = jnp.where(here, x, -jnp.inf)
        return finite_top(lax.cummax(filled, axis=x.ndim - 2) if running else filled.max(axis=-2))
    total, count = jnp.where(here, x, 0.0), here.astype(x.dtype)
    total, count = (jnp.cumsum(y, -2) if running else y.sum(axis=-2) for y in (total, count))
    return total if pool == "sum" else total / jnp.maximum(count, 1.0)


def others(n: int, causal: bool) -> Array:
    """Which of n places see which others: all, or the earlier ones."""
    return jnp.tril(jnp.ones((n, n), bool), -1) if causal else ~jnp.eye(n, dtype=bool)
