"""The pairwise sigmoid loss of SigLIP."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import check_reduction
from rml.ops.ring import ring_values
from rml.ops.shapes import check_finite, check_shapes
from rml.ops.similarity import normalize
from rml.ops.streaming import row_values, weighted_sum


def siglip_loss(
    images: Float[Array, "n d"],
    texts: Float[Array, "n d"],
    *,
    log_scale: float | Float[Array, ""],
    bias: float | Float[Array, ""],
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the sigmoid loss of every image with every text, divided by the number of images.

    With y = 1 for pairs and -1 else, -log σ(y s) is softplus(s), less s for a pair.

    Args:
      images: Image embeddings, not normalised.
      texts: Text embeddings, row i of the same pair as row i of `images`.
      log_scale: Logarithm of the inverse temperature; the paper starts at log 10.
      bias: Added to the logits; the paper starts at -10.
      reduction: Mean over the images, or each image's sum over the texts.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which the pairs are sharded.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, `reduction` is unknown, or `log_scale` or `bias` is not
        finite.

    Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, algorithm 1; in eq. 1
    the bias has the opposite sign.
    """
    check_shapes(images=(images, "n d"), texts=(texts, "n d"))
    check_reduction(reduction)
    check_finite(log_scale=log_scale, bias=bias)
    n = images.shape[0]
    images = normalize(images) * jnp.exp(log_scale)
    texts = normalize(texts)
    each = jnp.sum(images * texts, axis=-1) + bias
    if axis_name is None and reduction == "none":
        row = row_values(images, texts, bias=bias, kind="softplus", block_size=block_size)
        return row - each
    positive = jnp.mean(each)
    if axis_name is None:
        weights = jnp.full(n, 1 / n, images.dtype)
        total = weighted_sum(
            images, texts, weights, bias=bias, kind="softplus", block_size=block_size
        )
        return total - positive
    row, _ = ring_values(
        images, texts, axis_name=axis_name, bias=bias, kind="softplus", block_size=block_size
    )
    if reduction == "none":
        return row - each
    return jax.lax.pmean(jnp.mean(row) - positive, axis_name)
