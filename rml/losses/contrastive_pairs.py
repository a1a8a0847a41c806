"""Contrastive loss of pairs: those of a class together, others a margin apart."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.ops.pairwise import safe_sqrt, squared_euclidean
from rml.ops.shapes import check_above_0, check_shapes
from rml.ops.similarity import wide


def contrastive_pairs(
    features: Float[Array, "n d"], labels: Int[Array, " n"], *, margin: float | Float[Array, ""]
) -> Float[Array, ""]:
    r"""Computes the contrastive loss over all pairs of a batch.

    With distances $d_{ij}$ of rows and the margin m it is half of the mean of $d_{ij}^2$ over the
    pairs of a class plus half of the mean of $\max(0, m - d_{ij})^2$ over the others. The two kinds
    count alike, whatever their numbers.

    Args:
      features: Rows, normalised if distances on the sphere are wanted.
      labels: Class of each row.
      margin: Distance beyond which rows of different classes are left alone, above 0.

    Returns:
      The loss; a kind without a pair adds nothing.

    Raises:
      ValueError: If shapes do not fit, or `margin` is not above 0.

    Source: Hadsell, Chopra, LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR
    2006, eq. 4; that the two kinds have a mean each is that of Musgrave et al., arXiv:2003.08505.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"))
    check_above_0(margin=margin)
    (rows,) = wide(features)
    square = squared_euclidean(rows, rows)
    same = labels[:, None] == labels[None, :]
    alike = same & ~jnp.eye(len(labels), dtype=bool)
    apart = jnp.maximum(margin - safe_sqrt(square), 0) ** 2

    def mean(values: Array, chosen: Array) -> Array:
        return jnp.sum(jnp.where(chosen, values, 0)) / jnp.maximum(jnp.sum(chosen), 1)

    return (mean(square, alike) + mean(apart, ~same)) / 2
