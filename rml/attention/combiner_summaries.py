"""Summaries of regions by which Combiner attends to what is far.

Ren et al., Combiner, arXiv:2107.05768, section 3.1: a region is known by a query and a key that
pool those of its tokens, and by the expected value given that query. A row of a grid is also
summarised at each of its places, by the attention of that place to its row.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from rml.ops.attention_parts import attend_part, finite_top

Pool = Literal["max", "mean", "sum"]
RowSummary = Literal["none", "wsum", "proj", "wsum_proj"]
EPSILON = 1e-6
"""Added to the variance where what a row's key is made of is normalised."""


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


class RowProjection(NamedTuple):
    """Weights of a row's keys y K, where y normalises s W + x and s is a summary of all heads.

    Attributes:
      inputs: x, what queries, keys and values were made of.
      out: W of each head.
      scale: Factor of y after it was normalised.
      offset: What is added then.
      key: K of each head.
    """

    inputs: Float[Array, "b t d"]
    out: Float[Array, "h w d"]
    scale: Float[Array, " d"]
    offset: Float[Array, " d"]
    key: Float[Array, "d h k"]

    def keys(self, summary: Float[Array, "b h t w"]) -> Float[Array, "b h t k"]:
        """Computes the keys of summaries."""
        y = jnp.einsum("bhtw,hwd->btd", summary, self.out) + self.inputs
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)
        return jnp.einsum("btd,dhk->bhtk", y * self.scale + self.offset, self.key)


class Pooling(NamedTuple):
    """How regions are summarised.

    Attributes:
      pool: Over each coordinate of a region's queries and keys.
      deep: What these go through before; nothing if not given.
      row: What the key of a row of "rowmajor" is, see `row_summaries`.
      projection: Weights of such keys that are projected.
      relu: Whether queries and keys go through relu before they pool, where `deep` is not given.
    """

    pool: Pool = "max"
    deep: DeepSet | None = None
    row: RowSummary = "none"
    projection: RowProjection | None = None
    relu: bool = False

    def vectors(self, tokens: "Tokens") -> tuple[Array, Array]:
        """Computes the queries and keys that are pooled."""
        if self.relu:
            return jax.nn.relu(tokens.query), jax.nn.relu(tokens.key)
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
        """Cuts the tokens into rows of a size, [*b, rows, size, k]."""
        here = self.here.reshape(*self.here.shape[:-1], -1, size)
        query, key, value = (x.reshape(*x.shape[:-2], -1, size, x.shape[-1]) for x in self[:3])
        return Tokens(query, key, value, here)

    def turned(self) -> "Tokens":
        """Exchanges rows and columns."""
        query, key, value = (x.swapaxes(-3, -2) for x in self[:3])
        return Tokens(query, key, value, self.here.swapaxes(-2, -1))

    def reversed(self) -> "Tokens":
        """Puts the tokens into the opposite order."""
        query, key, value = (x[..., ::-1, :] for x in self[:3])
        return Tokens(query, key, value, self.here[..., ::-1])


def summaries(tokens: Tokens, pooling: Pooling, scale: float) -> Tokens:
    """Summarises each row: its pooled query and key, its expected value given that query.

    Args:
      tokens: [*b, rows, size, k].
      pooling: Pooling of queries and keys.
      scale: Factor of the logits.

    Returns:
      Summaries [*b, rows, k]; one of padding alone is not there.
    """
    query, key = (pooled(x, tokens.here, pooling.pool) for x in pooling.vectors(tokens))
    mask = tokens.here[..., None, :]
    value = attend_part(query[..., None, :], tokens.key, tokens.value, mask, scale=scale).out
    return Tokens(query, key, value[..., 0, :], tokens.here.any(axis=-1))


def before(tokens: Tokens, pooling: Pooling, scale: float) -> Tokens:
    """Summarises, at each place, all earlier ones, in the same shapes; nothing at the first."""
    n = tokens.here.shape[-1]
    shifted = jnp.roll(tokens.here, 1, axis=-1) & (jnp.arange(n) > 0)
    query, key = (
        pooled(jnp.roll(x, 1, axis=-2), shifted, pooling.pool, running=True)
        for x in pooling.vectors(tokens)
    )
    mask = others(n, True) & tokens.here[..., None, :]
    value = attend_part(query, tokens.key, tokens.value, mask, scale=scale).out
    return Tokens(query, key, value, jnp.cumsum(shifted, axis=-1) > 0)


def row_summaries(rows: Tokens, pooling: Pooling, scale: float) -> Tokens:
    """Summarises, at each place, its whole row; nothing at a place of padding.

    Its value is what the place's own query attends to in the row. Its key is that place's ("none"),
    the mean of the row's keys by the same weights ("wsum"), or a projection of the value ("proj")
    or of that mean ("wsum_proj").

    Args:
      rows: [*b, rows, size, k].
      pooling: Which key, with its weights.
      scale: Factor of the logits.
    """
    mask = rows.here[..., None, :]
    value = attend_part(rows.query, rows.key, rows.value, mask, scale=scale).out
    if pooling.row == "none":
        return Tokens(rows.query, rows.key, value, rows.here)
    summary = value
    if pooling.row != "proj":
        summary = attend_part(rows.query, rows.key, rows.key, mask, scale=scale).out
    if pooling.projection is None:
        return Tokens(rows.query, summary, value, rows.here)
    b, g, heads, height, width, _ = summary.shape
    flat = summary.reshape(b, g * heads, height * width, -1)
    key = pooling.projection.keys(flat).reshape(b, g, heads, height, width, -1)
    return Tokens(rows.query, key, value, rows.here)


def pooled(
    x: Float[Array, "*b n k"], here: Bool[Array, "*c n"], pool: Pool, *, running: bool = False
) -> Float[Array, "..."]:
    """Takes the maximum, mean or sum of vectors that are there, 0 where none is.

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
    """Tells which of n places see which others: all, or the earlier ones."""
    return jnp.tril(jnp.ones((n, n), bool), -1) if causal else ~jnp.eye(n, dtype=bool)
