"""Exact nearest neighbours in blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.ops.pairwise import dot_product, finite_mean, fold_blocks, safe_sqrt
from rml.ops.similarity import normalize

Metric = Literal["cosine", "euclidean", "dot"]

Best = tuple[Array, Array]
"""Scores, falling along a row, and indices of the best columns of each row so far."""


@partial(jax.jit, static_argnames=("k", "metric", "block", "query_block", "exclude_self"))
def topk(
    queries: Float[Array, "m d"],
    keys: Float[Array, "n d"],
    *,
    k: int,
    metric: Metric = "cosine",
    block: int = 1024,
    query_block: int | None = None,
    exclude_self: bool = False,
    count: int | Int[Array, ""] | None = None,
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Finds the k nearest keys of every query, exactly, nearest first.

    Queries and keys are visited in blocks, so intermediates hold about `block` times `query_block`
    numbers whatever m and n are. Among equally near keys the lower index comes first.

    Args:
      queries: Query vectors.
      keys: Vectors searched.
      k: Neighbours per query.
      metric: "cosine" and "dot" return similarities, falling along a row; "euclidean" returns
        distances, rising. A zero vector has cosine 0 with every vector.
      block: Keys handled at a time; all where the queries are so few that it makes no more numbers.
      query_block: Queries handled at a time, by default as many as keys.
      exclude_self: Leave key i out of the neighbours of query i, for the graph of a set
        with itself.
      count: Only the first `count` keys are searched, by default all; may be traced.

    Returns:
      Similarities or distances, and the indices of the keys. "euclidean" selects by the expanded
      square, exact up to float32 rounding, and measures the selected distances by differences:
      a duplicate is at distance exactly 0. A pair whose similarity is NaN is no neighbour; where
      fewer than k keys are left, the rest has index -1, similarity -inf or distance inf.

    Raises:
      ValueError: If the shapes disagree, `k` is not between 1 and the number of keys left, a block
        is less than 1, or the metric is unknown.
    """
    m, n = queries.shape[0], keys.shape[0]
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries and keys must have the same number of features, got shapes {queries.shape} "
            f"and {keys.shape}"
        )
    check_metric(metric)
    if exclude_self and m != n:
        raise ValueError(
            f"exclude_self needs the queries to be the keys, got {m} queries and {n} keys"
        )
    available = n - 1 if exclude_self else n
    if not 1 <= k <= available:
        raise ValueError(f"k must be between 1 and the {available} keys available, got {k}")
    query_block = block if query_block is None else query_block
    for name, size in (("block", block), ("query_block", query_block)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")

    dtype = jnp.promote_types(jnp.promote_types(queries.dtype, keys.dtype), jnp.float32)
    passes = max(1, math.ceil(m / query_block))
    rows = max(1, math.ceil(m / passes))
    if rows * n <= block * query_block:
        block = n  # a few queries look at all keys, without a copy of each block
    width = math.ceil(n / math.ceil(n / block))  # equal blocks: the last one repeats few keys
    group = _group_size(width, k)
    width = math.ceil(width / group) * group if width < n else n

    def split(queries: Array) -> Array:
        return jnp.pad(queries, ((0, passes * rows - m), (0, 0))).reshape(passes, rows, -1)

    left, right = queries, keys
    if metric == "cosine":
        left, right = normalize(queries), normalize(keys)
    elif metric == "euclidean":
        # Distances do not depend on the origin; a far origin would cost digits.
        counted = None if count is None else jnp.arange(n) < count
        origin = finite_mean(keys.astype(dtype), counted)
        left, right = queries - origin, keys - origin
    own = jnp.arange(passes * rows).reshape(passes, rows)

    def visit(best: Best, part: Array, index: Array, new: Array) -> Best:
        index = index.astype(jnp.int32)  # of x64 too, as those of `top_k` are
        if count is not None:
            new &= index < count

        def merge(item: tuple[Array, Array, Best]) -> Best:
            query, self_index, so_far = item
            # Behind a barrier a product is one value, whoever reads it.
            scores = jax.lax.optimization_barrier(dot_product(query, part))
            if metric == "euclidean":  # ranks as -|query - key|²
                scores -= 0.5 * jnp.sum(part.astype(dtype) ** 2, axis=1)

            def hide(scores: Array) -> Array:
                keep = new & ~jnp.isnan(scores)
                if exclude_self:
                    keep &= index != self_index[:, None]
                return jnp.where(keep, scores, -jnp.inf)

            plain = jnp.all(new) & ~jnp.bool_(exclude_self)
            return _merge(so_far, scores, index, group, hide, plain)

        return jax.lax.map(merge, (split(left), own, best))

    shape = passes, rows, k
    start = jnp.full(shape, -jnp.inf, dtype), jnp.full(shape, -1, jnp.int32)
    scores, indices = fold_blocks(visit, start, right, block=width)

    def measure(item: tuple[Array, Array]) -> Best:
        query, near = item

        def square(i: Array) -> Array:
            apart = query.astype(dtype) - keys[i].astype(dtype)
            return jnp.where(i < 0, jnp.inf, jnp.sum(apart * apart, axis=1))

        squares = jax.lax.map(square, near.T).T
        # Rounding may have swapped keys that are almost equally near.
        order = jnp.lexsort((near, squares))
        squares = jnp.take_along_axis(squares, order, axis=1)
        return safe_sqrt(squares), jnp.take_along_axis(near, order, axis=1)

    if metric == "euclidean":
        scores, indices = jax.lax.map(measure, (split(queries), indices))
    return scores.reshape(-1, k)[:m], indices.reshape(-1, k)[:m]


def check_metric(metric: str) -> None:
    """Raises ValueError unless a metric is known."""
    if metric not in ("cosine", "euclidean", "dot"):
        raise ValueError(f"metric must be 'cosine', 'euclidean' or 'dot', got {metric!r}")


def _group_size(width: int, k: int) -> int:
    """Columns of a group: about as many groups are then compared as columns of chosen groups."""
    return 2 ** min(7, max(3, round(math.log2(width / k) / 2)))


def _merge(
    best: Best,
    scores: Array,
    index: Array,
    group: int,
    hide: Callable[[Array], Array],
    plain: Array,
) -> Best:
    """Merges the best so far with those of a block of later columns; equals go to the earlier one.

    The k best columns lie in the k groups of consecutive columns with the highest peaks, equal
    peaks ordered by position: a group left out has k better columns before it. Only those groups
    are sorted, and fewer where fewer have a column that beats the k-th best so far.

    Args:
      best: The best so far.
      scores: Scores of the block.
      index: Indices of its columns.
      group: Columns of a group.
      hide: Makes scores of columns that are no neighbours -inf, those that are NaN among them.
      plain: Whether it would hide none but NaN; a pass over all scores is then spared.

    Returns:
      The best.
    """
    (rows, width), k = scores.shape, best[0].shape[1]
    if 2 * k * group >= width:
        return _insert(best, hide(scores), jnp.broadcast_to(index, scores.shape))
    whole = width // group * group

    def insert(scores: Array, peaks: Array) -> Best:
        groups = scores[:, :whole].reshape(rows, -1, group)
        rest = scores[:, whole:], jnp.broadcast_to(index[whole:], (rows, width - whole))

        def insert_from(number: int, best: Best) -> Best:
            highest, chosen = jax.lax.top_k(rivals, number)
            chosen = jnp.sort(chosen, axis=1)[:, :, None]
            found = jnp.take_along_axis(groups, chosen, axis=1).reshape(rows, -1)
            if number == k:  # as many columns reach the lowest of these peaks
                found = jnp.where(found >= jnp.min(highest, axis=1)[:, None], found, -jnp.inf)
            place = index[0] + (chosen * group + jnp.arange(group, dtype=jnp.int32)).reshape(
                rows, -1
            )
            both = ((found, rest[0]), (place, rest[1]))
            return _insert(best, *(jnp.concatenate(parts, 1) for parts in both))

        numbers = sorted({math.ceil(k / share) for share in (16, 4, 1)})
        better = peaks > best[0][:, -1:]
        # What cannot be among the best is -inf: `top_k` is quick past equal numbers.
        rivals = jnp.where(better, peaks, -jnp.inf)
        needed = jnp.max(jnp.sum(better, axis=1))
        level = sum(jnp.int32(needed > number) for number in numbers[:-1])
        return jax.lax.switch(level, [partial(insert_from, number) for number in numbers], best)

    def peaks_of(scores: Array) -> Array:
        # Of all forms of this maximum the one that XLA runs fastest behind a product.
        window = (1, group)
        return jax.lax.reduce_window(
            scores[:, :whole], -jnp.inf, jax.lax.max, window, window, "VALID"
        )

    def insert_hidden(scores: Array, peaks: Array) -> Best:
        del peaks
        hidden = hide(scores)
        return insert(hidden, peaks_of(hidden))

    peaks = peaks_of(scores)  # NaN where a score is
    plain &= ~(jnp.isnan(peaks).any() | jnp.isnan(scores[:, whole:]).any())
    return jax.lax.cond(plain, insert, insert_hidden, scores, peaks)


def _insert(best: Best, scores: Array, index: Array) -> Best:
    """The best of those so far and of more; among equals the first stands first."""
    k = best[0].shape[1]
    top, place = jax.lax.top_k(jnp.concatenate([best[0], scores], axis=1), k)
    return top, jnp.take_along_axis(jnp.concatenate([best[1], index], axis=1), place, axis=1)
