"""NNCLR: the positive of a view is the nearest neighbour of the other view."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.infonce import info_nce
from rml.ops.shapes import check_shapes
from rml.ops.similarity import normalize
from rml.ops.topk import topk


def nearest_support(z: Float[Array, "n d"], support: Float[Array, "r d"]) -> Float[Array, "n d"]:
    """Finds for each row that of a support set with the largest cosine; no gradient flows back.

    A row that is not finite has no neighbour, which is NaN.

    Raises:
      ValueError: If the arrays are no matrices of one width.

    Source: Dwibedi et al. 2021, NNCLR, eq. 3.
    """
    check_shapes(z=(z, "n d"), support=(support, "r d"))
    z, support = jax.lax.stop_gradient((z, support))
    index = topk(z, support, k=1)[1]
    return jnp.where(index < 0, jnp.nan, jnp.take(support, index[:, 0], axis=0))


def nnclr(
    projections: Float[Array, "n d"],
    predictions: Float[Array, "n d"],
    support: Float[Array, "r d"],
    *,
    temperature: float | Float[Array, ""],
    reduction: str = "mean",
    block_size: int | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes -log softmax over the batch of cos(NN(z_i), p_i) / τ, NN among the support set.

    The paper adds the same of the views in exchange.

        value = nnclr(z1, p2, queue.keys, temperature=0.1)  # then enqueue(queue, normalize(z1))

    Args:
      projections: Projections z of one view, not normalised; only their neighbours are used.
      predictions: Predictions p of the other view, not normalised: row i the positive of neighbour
        i, the other rows its negatives.
      support: Projections of earlier batches, see `rml.training.init_queue`.
      temperature: Divides the cosines, τ; above 0.
      reduction: Mean over the examples, or each example's value.
      block_size: Rows of one strip of logits; automatic by default.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit or `reduction` is unknown.

    Source: Dwibedi et al. 2021, With a Little Help from My Friends: Nearest-Neighbor Contrastive
    Learning of Visual Representations (arXiv:2104.14548), eq. 3 to 5.
    """
    check_shapes(
        projections=(projections, "n d"), predictions=(predictions, "n d"), support=(support, "r d")
    )
    neighbours = normalize(nearest_support(projections, support))
    return info_nce(
        neighbours, normalize(predictions), temperature=temperature, reduction=reduction,
        block_size=block_size,
    )  # fmt: skip
