"""Exact nearest neighbours in blocks."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.ops.pairwise import fold_blocks, safe_sqrt
from rml.ops.similarity import normalize

Metric = Literal["cosine", "euclidean", "dot"]


@partial(jax.jit, static_argnames=("k", "metric", "block", "exclude_self"))
def topk(
    queries: Float[Array, "m d"],
    keys: Float[Array, "n d"],
    *,
    k: int,
    metric: Metric = "cosine",
    block: int = 1024,
    exclude_self: bool = False,
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """The k nearest keys of every query, exactly, nearest first.

    Queries and keys are visited in blocks, so intermediates hold about block² numbers whatever m
    and n are. Among equally near keys the lower index comes first.

    Args:
      queries: Query vectors.
      keys: Vectors searched.
      k: Neighbours per query.
      metric: "cosine" and "dot" return similarities, falling along a row; "euclidean" returns
        distances, rising. A zero vector has cosine 0 with every vector.
      block: Queries, and keys, handled at a time.
      exclude_self: Leave key i out of the neighbours of query i, for the graph of a set
        with itself.

    Returns:
      Similarities or distances, and the indices of the keys. "euclidean" selects by the expanded
      square, exact up to float32 rounding, and measures the selected distances by differences:
      a duplicate is at distance exactly 0.

    Raises:
      ValueError: If the shapes disagree, `k` is not between 1 and the number of keys left, `block`
        is less than 1, or the metric is unknown.
    """
    m, n = queries.shape[0], keys.shape[0]
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries and keys must have the same number of features, got shapes {queries.shape} "
            f"and {keys.shape}"
        )
    if metric not in ("cosine", "euclidean", "dot"):
        raise ValueError(f"metric must be 'cosine', 'euclidean' or 'dot', got {metric!r}")
    if exclude_self and m != n:
        raise ValueError(
            f"exclude_self needs the queries to be the keys, got {m} queries and {n} keys"
        )
    available = n - 1 if exclude_self else n
    if not 1 <= k <= available:
        raise ValueError(f"k must be between 1 and the {available} keys available, got {k}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")

    dtype = jnp.promote_types(jnp.promote_types(queries.dtype, keys.dtype), jnp.float32)
    if metric == "cosine":
        queries, keys = normalize(queries), normalize(keys)
    elif metric == "euclidean":
        # Distances do not depend on the origin; a far origin would cost digits.
        origin = jnp.mean(keys.astype(dtype), axis=0)
        queries, keys = queries - origin, keys - origin

    def neighbours(query: Array, self_index: Array) -> tuple[Array, Array]:
        def merge(best: tuple[Array, Array], part: Array, index: Array, new: Array) -> tuple:
            score = jnp.matmul(
                part, query, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
            )
            if metric == "euclidean":  # ranks as -|query - key|²
                score -= 0.5 * jnp.sum(part * part, axis=1)
            if exclude_self:
                new &= index != self_index
            # The best so far have the lower indices and stand first, where ties are won.
            scores = jnp.concatenate([best[0], jnp.where(new, score, -jnp.inf)])
            best_scores, place = jax.lax.top_k(scores, k)
            return best_scores, jnp.concatenate([best[1], index])[place]

        start = jnp.full(k, -jnp.inf, dtype), jnp.full(k, -1)
        scores, indices = fold_blocks(merge, start, keys, block=block)
        if metric != "euclidean":
            return scores, indices
        squares = jax.lax.map(lambda i: jnp.sum((query - keys[i]) ** 2), indices)
        # Rounding may have swapped keys that are almost equally near.
        order = jnp.lexsort((indices, squares))
        return safe_sqrt(squares[order]), indices[order]

    return jax.lax.map(
        lambda pair: neighbours(*pair), (queries, jnp.arange(m)), batch_size=max(1, min(block, m))
    )
