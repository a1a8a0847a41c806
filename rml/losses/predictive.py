"""Losses without negatives: one view's prediction of the other's projection."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import reduced
from rml.ops.shapes import check_shapes
from rml.ops.similarity import normalize


def negative_cosine(
    predictions: Float[Array, "*n d"], targets: Float[Array, "*n d"], *, reduction: str = "mean"
) -> Float[Array, ""] | Float[Array, "*n"]:
    """Computes D(p, z) = -p/|p| · z/|z|, where no gradient flows into z.

    Args:
      predictions: Predictions p, not normalised.
      targets: Projections z of another view, row by row; a zero row has the value 0.
      reduction: Mean over the rows, or each row's value.

    Returns:
      The value, in [-1, 1].

    Raises:
      ValueError: If shapes do not fit, or `reduction` is unknown.

    Source: Chen & He 2021, Exploring Simple Siamese Representation Learning, eq. 1 and 3.
    """
    check_shapes(predictions=(predictions, "... d"), targets=(targets, "... d"))
    targets = jax.lax.stop_gradient(targets)
    return reduced(-jnp.sum(normalize(predictions) * normalize(targets), axis=-1), reduction)


def simsiam(
    predictions: Float[Array, "2 n d"], projections: Float[Array, "2 n d"], *,
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:  # fmt: skip
    """Computes D(p₁, z₂) / 2 + D(p₂, z₁) / 2 with the negative cosine D.

    Without the stop of the gradient in D, or without a predictor, every image comes to have the
    same projection.

        value = simsiam(predictor(z), z)  # z: projections of both views, [2, n, d]

    Args:
      predictions: Predictions p of both views, not normalised.
      projections: Projections z of both views.
      reduction: Mean over the examples, or each example's value.

    Returns:
      The value, in [-1, 1].

    Raises:
      ValueError: If shapes do not fit, or `reduction` is unknown.

    Source: Chen & He 2021, Exploring Simple Siamese Representation Learning (arXiv:2011.10566),
    eq. 2 to 4 and algorithm 1.
    """
    check_shapes(predictions=(predictions, "2 n d"), projections=(projections, "2 n d"))
    own = negative_cosine(predictions, projections[::-1], reduction="none")
    return reduced(jnp.mean(own, axis=0), reduction)


def byol(
    predictions: Float[Array, "2 n d"], targets: Float[Array, "2 n d"], *, reduction: str = "mean"
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes |p̄₁ - z̄₂|² + |p̄₂ - z̄₁|² = 4 - 2 cos(p₁, z₂) - 2 cos(p₂, z₁), bars for unit rows.

    It is four times SimSiam's loss plus 4; what differs is that targets are of a momentum encoder,
    see `rml.training.momentum_task`.

        value = byol(predictions, targets)  # both [2, n, d], of two views

    Args:
      predictions: Predictions p of both views by the trained network, not normalised.
      targets: Projections z of both views by its moving average; no gradient flows into them.
      reduction: Mean over the examples, or each example's value.

    Returns:
      The value, in [0, 8].

    Raises:
      ValueError: If `reduction` is unknown.

    Source: Grill et al. 2020, Bootstrap Your Own Latent (arXiv:2006.07733), Section 3.1, eq. 2 and
    its symmetrised form.
    """
    return 4 + 4 * simsiam(predictions, targets, reduction=reduction)
