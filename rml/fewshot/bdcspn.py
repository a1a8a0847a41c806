"""BD-CSPN: prototypes rectified by the queries."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.errors import unknown
from rml.fewshot.bound import Scalar, assign, tempered_softmax
from rml.fewshot.checks import require_episode
from rml.fewshot.gram import (
    Distance,
    before_shift,
    class_mix,
    cosines_to_mixtures,
    distances_to_mixtures,
    inner_products,
    shift_queries,
)
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_between

Weights = Literal["classes", "rows"]


@full_precision
def rectify_prototypes(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    scale: Scalar = 10.0,
    weights: Weights = "classes",
) -> Float[Array, "c d"]:
    """Averages each class over support and queries, the queries by their nearest prototype.

    The queries are first moved onto the support's mean. Every row weighs by its cosine to the
    prototype of its class.

    Args:
      support: Support features.
      support_labels: Their classes.
      query: Query features, not moved yet.
      num_classes: Number of classes c.
      scale: ε, which multiplies the cosines.
      weights: How exp(ε cos) is normalised. "classes": for each row by the sum over classes, as in
        the public code of LaplacianShot and α-TIM, where support rows too belong to the class of
        their nearest prototype, and the weighted rows are averaged. "rows": for each class by the
        sum over its rows, as in easyfsl (with scale 1), where support rows keep their labels.

    Returns:
      The rectified prototypes; a class without rows keeps its own.

    Raises:
      UserError: If `weights` is unknown.
      ValueError: If `scale` is below 0.

    Source: Liu et al., Prototype Rectification for Few-Shot Learning, arXiv:1911.10713; the
      variants as read from the code named above.
    """
    rows = jnp.concatenate([support, query])
    mix = rectified_mix(
        inner_products(rows, rows), support_labels, num_classes=num_classes, scale=scale,
        weights=weights,
    )  # fmt: skip
    return before_shift(mix, support.shape[0]) @ rows


def rectified_mix(
    products: Float[Array, "n n"],
    support_labels: Int[Array, " s"],
    *,
    num_classes: int,
    scale: Scalar,
    weights: Weights,
) -> Float[Array, "c n"]:
    """Finds `rectify_prototypes` from inner products: combinations of rows with moved queries."""
    if weights not in ("classes", "rows"):
        raise unknown("weights", weights, ("classes", "rows"))
    check_between(0, scale=scale)
    s, n = support_labels.shape[0], products.shape[0]
    means = class_mix(support_labels, num_classes=num_classes, rows=n).astype(products.dtype)
    cosines = cosines_to_mixtures(shift_queries(products, s), means)
    member = assign(cosines, 1.0, hard=True)
    if weights == "classes":
        weight = jax.nn.softmax(scale * cosines, axis=0) * member
        total = jnp.sum(member, axis=1, keepdims=True)
    else:
        labelled = jax.nn.one_hot(support_labels, num_classes, dtype=member.dtype, axis=0)
        member = member.at[:, :s].set(labelled)
        weight = jnp.exp(scale * (cosines - 1)) * member
        total = jnp.sum(weight, axis=1, keepdims=True)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), means)


@full_precision
def bd_cspn(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    scale: Scalar = 10.0,
    weights: Weights = "classes",
    distance: Distance = "cosine",
) -> Float[Array, "q c"]:
    """Classifies queries by their distance to rectified prototypes.

    Args:
      support: Support features.
      support_labels: Their classes.
      query: Query features.
      num_classes: Number of classes c.
      scale: ε of the rectification, and of the softmax that gives probabilities.
      weights: See `rectify_prototypes`.
      distance: "cosine" as in the paper and easyfsl, or "squared_euclidean" as in LaplacianShot,
        whose rectified prototypes are these. The latter's halves stand where the cosines do, which
        between unit vectors is the same.

    Returns:
      Probabilities, the softmax of the scaled cosines or minus half squared distances.

    Raises:
      ValueError: If the arrays are not an episode, `weights` or `distance` is unknown, or `scale`
        is not above 0.

    Source: Liu et al., arXiv:1911.10713. The queries are classified where they lie, not moved, as
      in easyfsl and in the code of α-TIM.
    """
    if distance not in ("cosine", "squared_euclidean"):
        raise unknown("distance", distance, ("cosine", "squared_euclidean"))
    check_above_0(scale=scale)
    require_episode(support, support_labels, query, num_classes)
    rows, s = jnp.concatenate([support, query]), support.shape[0]
    products = inner_products(rows, rows)
    mix = rectified_mix(
        products, support_labels, num_classes=num_classes, scale=scale, weights=weights
    )
    mix = before_shift(mix, s)
    if distance == "cosine":
        near = cosines_to_mixtures(products, mix)
    else:
        near = -distances_to_mixtures(products, mix) / 2
    return tempered_softmax(near[:, s:], 1 / jnp.asarray(scale, near.dtype), axis=0).T
