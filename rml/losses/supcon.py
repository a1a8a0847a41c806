"""Supervised contrastive loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.losses.ntxent import not_self
from rml.losses.reduction import check_reduction
from rml.ops.ring import ring_values
from rml.ops.shapes import check_above_0, check_shapes
from rml.ops.similarity import normalize
from rml.ops.streaming import Mask, Pairs, masked_sum, row_values, symmetric_logsumexp


def _same_label(row: Array, col: Array, row_label: Array, col_label: Array) -> Array:
    return (row != col) & (row_label == col_label)


def _class_sums(z: Array, labels: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Sum and number of the other rows with each row's label, in O(n d)."""
    known = labels if axis_name is None else jax.lax.all_gather(labels, axis_name, tiled=True)
    group = jnp.searchsorted(jnp.sort(known), labels)  # where the label first stands
    rows = jnp.concatenate([z, jnp.ones_like(z[:, :1])], 1)
    sums = jax.ops.segment_sum(rows, group, known.shape[0])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    others = sums[group] - rows
    return others[:, :-1], jax.lax.stop_gradient(others[:, -1])


def sup_con(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    temperature: float | Float[Array, ""],
    form: str = "out",
    positives: Mask | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the supervised contrastive loss, all rows with an anchor's label its positives.

    In both forms the denominator holds all other rows, positives included. Conventions of others:

    * The authors' code multiplies by temperature / 0.07, and counts an anchor without positive as
      zero: `jnp.mean` of `reduction="none"`, times that factor, is its value.
    * pytorch-metric-learning's `SupConLoss` is the form "out" without the factor, and leaves
      anchors without positive out, as here.
    * A denominator of one positive beside the negatives is that of `rml.hydra.hydra_loss`; one
      without positives is that of `dcl`.

    Args:
      features: Embeddings of all views, not normalised.
      labels: Class of each row; views of one example share it.
      temperature: Divides the cosine similarities; above 0.
      form: Mean over positives outside the logarithm, "out", or inside, "in".
      positives: Mask of the positive pairs instead of equal labels, a function of
        (row, column, row label, column label); must exclude an anchor with itself.
      reduction: Mean over the anchors that have a positive, or each anchor's loss, zero for an
        anchor without positive.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which the rows are sharded.

    Returns:
      The loss; zero if no anchor has a positive.

    Raises:
      ValueError: If shapes do not fit, `form` or `reduction` is unknown, or `positives` is given
        with `axis_name`.

    Source: Khosla et al. 2020, Supervised Contrastive Learning, eq. 2 (out) and eq. 3 (in).
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"))
    if form not in ("out", "in"):
        raise ValueError(f"form must be 'out' or 'in', got {form!r}.")
    check_reduction(reduction)
    check_above_0(temperature=temperature)
    if positives is not None and axis_name is not None:
        raise ValueError("positives is not available with axis_name.")
    z = normalize(features)
    z = z / jnp.sqrt(jnp.asarray(temperature, z.dtype))
    n = z.shape[0]
    pairs = Pairs(labels, labels)

    def lse(mask: Mask, symmetric: bool) -> Array:
        if axis_name is not None:
            return ring_values(
                z, z, axis_name=axis_name, mask=mask, pairs=pairs, block_size=block_size
            )[0]
        if symmetric:
            return symmetric_logsumexp(z, mask=mask, pairs=pairs, block_size=block_size)
        return row_values(z, z, mask=mask, pairs=pairs, block_size=block_size)

    everything = lse(not_self, True)
    if positives is None:
        sums, number = _class_sums(z, labels, axis_name)
    else:
        sums, number = masked_sum(z, n, mask=positives, pairs=pairs, block_size=block_size)
    has = number > 0
    number = jnp.where(has, number, 1.0)
    if form == "out":
        loss = everything - jnp.sum(z * sums, axis=-1) / number
    else:
        loss = everything - lse(positives or _same_label, positives is None) + jnp.log(number)
    loss = jnp.where(has, loss, 0.0)
    if reduction == "none":
        return loss
    total, anchors = jnp.sum(loss), jnp.sum(has)
    if axis_name is not None:
        total, anchors = jax.lax.psum((total, anchors), axis_name)
    return total / jnp.maximum(anchors, 1)
