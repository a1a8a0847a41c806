"""The symmetric contrastive loss of CLIP."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import check_reduction, reduced
from rml.ops.ring import ring_values
from rml.ops.shapes import check_finite, check_shapes
from rml.ops.similarity import normalize
from rml.ops.streaming import row_and_column_values

MAX_LOG_SCALE = math.log(100.0)


def clip_loss(
    images: Float[Array, "n d"],
    texts: Float[Array, "n d"],
    *,
    log_scale: float | Float[Array, ""],
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the mean of the image-to-text and the text-to-image cross-entropy.

    Args:
      images: Image embeddings, not normalised.
      texts: Text embeddings, row i of the same pair as row i of `images`.
      log_scale: Logarithm of the inverse temperature, a learned parameter that starts at
        log(1 / 0.07). The paper holds it to at most log 100: apply `clamp_log_scale` after each
        step. Clamped here, one overshoot would end its gradient.
      reduction: Mean over the pairs, or each pair's loss.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which the pairs are sharded.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, `reduction` is unknown, or `log_scale` is not finite.

    Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language
    Supervision, figure 3 and section 2.5.
    """
    check_shapes(images=(images, "n d"), texts=(texts, "n d"))
    check_reduction(reduction)
    check_finite(log_scale=log_scale)
    images = normalize(images) * jnp.exp(log_scale)
    texts = normalize(texts)
    positive = jnp.sum(images * texts, axis=-1)
    if axis_name is None:
        row, col = row_and_column_values(images, texts, block_size=block_size)
        return reduced((row + col) / 2 - positive, reduction)
    row, col = ring_values(images, texts, axis_name=axis_name, columns=True, block_size=block_size)
    loss = (row + col) / 2 - positive
    return jax.lax.pmean(jnp.mean(loss), axis_name) if reduction == "mean" else loss


def clamp_log_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Bounds the logarithm of CLIP's inverse temperature by log 100, for use after a step.

    Source: Radford et al. 2021, section 2.5.
    """
    return jnp.minimum(log_scale, MAX_LOG_SCALE)
