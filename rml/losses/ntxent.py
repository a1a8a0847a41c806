"""NT-Xent, the loss of SimCLR."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import check_reduction
from rml.ops.ring import ring_values
from rml.ops.shapes import check_above_0, check_shapes
from rml.ops.similarity import normalize
from rml.ops.streaming import symmetric_logsumexp


def not_self(row: Array, col: Array, row_label: Array | None, col_label: Array | None) -> Array:
    """Admits every pair but that of a row with itself, as a mask of `rml.ops.streaming`."""
    return row != col


def nt_xent(
    a: Float[Array, "n d"],
    b: Float[Array, "n d"],
    *,
    temperature: float | Float[Array, ""],
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " k"]:
    """Computes the normalised temperature-scaled cross-entropy of two views.

    Args:
      a: First views, not normalised.
      b: Second views, row i of the same example as row i of `a`.
      temperature: Divides the cosine similarities; above 0.
      reduction: Mean over the 2n anchors, or each anchor's loss, those of `a` first.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which the examples are sharded: views
        on all devices are candidates and the mean is that of the whole batch.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, or `reduction` is unknown.

    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual
    Representations, eq. 1.
    """
    check_shapes(a=(a, "n d"), b=(b, "n d"))
    check_reduction(reduction)
    check_above_0(temperature=temperature)
    n = a.shape[0]
    z = normalize(jnp.concatenate([a, b]))
    z = z / jnp.sqrt(jnp.asarray(temperature, z.dtype))
    positive = jnp.sum(z[:n] * z[n:], axis=-1)
    if axis_name is None:
        row = symmetric_logsumexp(z, mask=not_self, block_size=block_size)
    else:
        row, _ = ring_values(z, z, axis_name=axis_name, mask=not_self, block_size=block_size)
    loss = row - jnp.concatenate([positive, positive])
    if reduction == "none":
        return loss
    return jnp.mean(loss) if axis_name is None else jax.lax.pmean(jnp.mean(loss), axis_name)
