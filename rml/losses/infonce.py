"""InfoNCE, cross-entropy of each query's key among all keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from rml.losses.reduction import check_reduction
from rml.ops.ring import ring_values
from rml.ops.shapes import check_above_0, check_indices, check_shapes
from rml.ops.streaming import Mask, Pairs, promote, row_values, weighted_sum
from rml.ops.varying import varies_over


def _not_same_label(row: Array, col: Array, row_label: Array, col_label: Array) -> Array:
    """Keeps other labels and the query's own key; row labels are (label, own key)."""
    return (row_label[:, :1] != col_label) | (row_label[:, 1:] == col)


def _listed(row: Array, col: Array, row_label: Array, col_label: Array | None) -> Array:
    return row_label


def _is_whole(x: Array, sharded: Array, axis_name: str | tuple[str, ...]) -> bool:
    """Whether an array is the same on devices over which another one differs."""
    return varies_over(sharded, axis_name) and not varies_over(x, axis_name)


def info_nce(
    queries: Float[Array, "n d"],
    keys: Float[Array, "m d"],
    *,
    temperature: float | Float[Array, ""],
    negatives: Float[Array, "r d"] | None = None,
    positives: Int[Array, " n"] | None = None,
    labels: tuple[Integer[Array, " n"], Integer[Array, " l"]] | None = None,
    false_negatives: Bool[Array, "n l"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes -log softmax of each query's dot product with its key, among all keys.

    Logits are dot products; normalise queries and keys for the cosine. The matrix of logits is
    never held unless it is small, see `rml.ops.streaming`.

    Args:
      queries: Queries.
      keys: Keys, at least as many as queries.
      temperature: Divides the logits; above 0.
      negatives: More keys that are no query's positive, such as MoCo's queue; with `axis_name`
        this device's share of them.
      positives: Index in `keys` of each query's key; by default query i has key i.
      labels: Labels of queries and of keys followed by negatives: a key with the query's label,
        other than its own key, is a false negative and left out.
      false_negatives: The same as a matrix over keys followed by negatives, true where left out.
      reduction: Mean over the queries, or each query's loss.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which queries and keys are sharded:
        keys of all devices are candidates and the mean is that of the whole batch. Query i's key
        is key i of the same device.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, options exclude each other or, outside `jit`, `positives`
        names no key.

    Source: van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding,
    eq. 4; queue of negatives: He et al. 2020, Momentum Contrast, eq. 1.
    """
    own_labels, all_labels = labels or (None, None)
    check_shapes(
        queries=(queries, "n d"), keys=(keys, "m d"), negatives=(negatives, "r d"),
        positives=(positives, "n"), own_labels=(own_labels, "n"), all_labels=(all_labels, "l"),
        false_negatives=(false_negatives, "n l"),
    )  # fmt: skip
    if positives is not None:
        check_indices("positives", positives, keys.shape[0])
    n = queries.shape[0]
    check_reduction(reduction)
    check_above_0(temperature=temperature)
    if positives is None and keys.shape[0] < n:
        raise ValueError(
            f"each query needs its key, got {n} queries and {keys.shape[0]} keys, of shapes "
            f"{queries.shape} and {keys.shape}."
        )
    if labels is not None and false_negatives is not None:
        raise ValueError("labels and false_negatives both name the false negatives; give one.")
    if axis_name is not None and (positives is not None or false_negatives is not None):
        raise ValueError("positives and false_negatives are not available with axis_name.")
    if axis_name is not None and labels is not None and (negatives is not None or len(keys) != n):
        raise ValueError("labels with axis_name need as many keys as queries and no negatives.")

    if axis_name is not None and negatives is not None and _is_whole(negatives, keys, axis_name):
        raise ValueError(
            f"negatives are whole on every device of {axis_name!r}, expected each device's share"
        )

    queries, keys, _ = promote(queries, keys, 0.0)  # once, so that gradients are rounded once
    queries = queries / temperature
    own = jnp.arange(n) if positives is None else positives
    # Of the first keys a slice, whose gradient is not scattered.
    chosen = keys[:n] if positives is None else jnp.take(keys, own, axis=0)
    positive = jnp.sum(queries * chosen, axis=-1)
    if negatives is not None:
        keys = jnp.concatenate([keys, negatives.astype(keys.dtype)])
    if axis_name is not None:
        own += jax.lax.axis_index(axis_name) * n

    mask: Mask | None = None
    pairs = Pairs()
    if labels is not None:
        mask = _not_same_label
        # Labels of eight bits could not hold the numbers of the keys beside them.
        wide = jnp.promote_types(labels[0].dtype, own.dtype)
        pairs = Pairs(
            jnp.stack([labels[0].astype(wide), own.astype(wide)], 1), labels[1].astype(wide)
        )
    if false_negatives is not None:
        mask = _listed
        pairs = Pairs(~false_negatives | (own[:, None] == jnp.arange(keys.shape[0])))
    for name, size in (("labels", pairs.col_labels), ("false_negatives", false_negatives)):
        if size is not None and size.shape[-1] != keys.shape[0]:
            raise ValueError(
                f"{name} must cover keys and negatives, {keys.shape[0]} in all, "
                f"got {size.shape[-1]}."
            )

    if axis_name is not None:
        row, _ = ring_values(
            queries, keys, axis_name=axis_name, mask=mask, pairs=pairs, block_size=block_size
        )
        loss = row - positive
        return jax.lax.pmean(jnp.mean(loss), axis_name) if reduction == "mean" else loss
    if reduction == "none":
        return row_values(queries, keys, mask=mask, pairs=pairs, block_size=block_size) - positive
    weights = jnp.full(n, 1 / n, queries.dtype)
    total = weighted_sum(queries, keys, weights, mask=mask, pairs=pairs, block_size=block_size)
    return total - jnp.mean(positive)


def info_nce_with_queue(
    queries: Float[Array, "n d"],
    keys: Float[Array, "n d"],
    queue: Float[Array, "r d"],
    *,
    temperature: float | Float[Array, ""],
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes -log softmax of each query's dot product with its key, among it and a queue.

    The other keys of the batch are no negatives, as in MoCo.

    Args:
      queries: Queries.
      keys: Keys, row i of the same example as query i. MoCo's have no gradient, which the caller
        stops.
      queue: Keys of earlier batches, the negatives; the same holds of them.
      temperature: Divides the logits; above 0.
      reduction: Mean over the queries, or each query's loss.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit.

    Source: He et al. 2020, Momentum Contrast (arXiv:1911.05722), eq. 1.
    """
    check_shapes(queries=(queries, "n d"), keys=(keys, "n d"), queue=(queue, "r d"))
    batch, earlier = jnp.zeros(len(queries), int), jnp.ones(len(queue), int)
    return info_nce(
        queries, keys, negatives=queue, temperature=temperature, reduction=reduction,
        labels=(batch, jnp.concatenate([batch, earlier])),
    )  # fmt: skip
