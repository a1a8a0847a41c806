"""Triplet loss with the triplets mined in the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.losses.shapes import check_shapes
from rml.ops.pairwise import squared_euclidean

ROUNDINGS = 16  # units in the last place by which equal distances, squared or not, may differ


def _distances(square: Array, squared: bool) -> Array:
    if squared:
        return square
    near = square <= 1e-12  # the square root has no gradient at zero
    return jnp.where(near, 0.0, jnp.sqrt(jnp.where(near, 1.0, square)))


def _mean(x: Array, keep: Array) -> Array:
    return jnp.sum(jnp.where(keep, x, 0.0)) / jnp.maximum(jnp.sum(keep), 1)


def _hard(d: Array, positive: Array, negative: Array, margin: float) -> Array:
    furthest = jnp.max(jnp.where(positive, d, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(negative, d, jnp.inf), axis=1)
    keep = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    return _mean(jax.nn.relu(jnp.where(keep, furthest - nearest, 0.0) + margin), keep)


def _sorted_negatives(d: Array, negative: Array) -> tuple[Array, Array]:
    """Each anchor's distances to negatives in ascending order, and how many there are."""
    return jnp.sort(jnp.where(negative, d, jnp.inf), axis=1), jnp.sum(negative, axis=1)


def _semi_hard(d: Array, square: Array, positive: Array, negative: Array, margin: float) -> Array:
    negatives, number = _sorted_negatives(d, negative)
    # A negative as far as the positive is not further, though rounding may say so.
    further = square + ROUNDINGS * jnp.finfo(square.dtype).eps * jnp.max(square)
    sorted_squares, _ = _sorted_negatives(square, negative)
    beyond = jax.vmap(lambda s, x: jnp.searchsorted(s, x, side="right"))(sorted_squares, further)
    # Where no negative is further than the positive, the furthest there is.
    index = jnp.clip(beyond, 0, jnp.maximum(number - 1, 0)[:, None])
    chosen = jnp.take_along_axis(negatives, index, axis=1)
    keep = positive & (number > 0)[:, None]
    return _mean(jax.nn.relu(jnp.where(keep, d - chosen, 0.0) + margin), keep)


def _all(d: Array, positive: Array, negative: Array, margin: float, active: bool) -> Array:
    # For one pair the hinge is a sum over the negatives nearer than d + margin: a prefix of the
    # sorted ones, so that n³ triplets cost n² log n.
    negatives, number = _sorted_negatives(d, negative)
    finite = jnp.where(jnp.isfinite(negatives), negatives, 0.0)
    prefix = jnp.pad(jnp.cumsum(finite, axis=1), ((0, 0), (1, 0)))
    limit = d + margin
    # A negative further by the margin is not nearer, though rounding may say so.
    below = limit - ROUNDINGS * jnp.finfo(d.dtype).eps * jnp.max(d)
    nearer = jax.vmap(lambda s, x: jnp.searchsorted(s, x, side="left"))(negatives, below)
    hinge = nearer * limit - jnp.take_along_axis(prefix, nearer, axis=1)
    triplets = jnp.sum(jnp.where(positive, nearer if active else number[:, None], 0))
    return jnp.sum(jnp.where(positive, hinge, 0.0)) / jnp.maximum(triplets, 1)


def triplet_loss(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    margin: float = 0.2,
    mining: str = "hard",
    squared: bool = False,
) -> Float[Array, ""]:
    """Computes the mean of max(0, d(anchor, positive) - d(anchor, negative) + margin).

    It is a mean over the triplets that are mined in the batch, of which an example has any number.

    Args:
      features: Embeddings, used as they are; normalise them for distances on the sphere.
      labels: Class of each row: equal labels are positives, others negatives.
      margin: Margin in units of the distance.
      mining: `hard` takes each anchor's furthest positive and nearest negative; `semi-hard`, for
        each pair, the nearest negative further than the positive, or the furthest negative if
        there is none; `all` averages over all triplets, `active` over those above zero.
      squared: Whether the distance is the squared Euclidean.

    Returns:
      The loss; zero if the batch has no triplet.

    Raises:
      ValueError: If shapes do not fit, or `mining` is unknown.

    Source: Schroff et al. 2015, FaceNet, section 3.2 (semi-hard); Hermans et al. 2017, In Defense
    of the Triplet Loss, eq. 5 (hard) and 6 (all), and section 2 for active.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"))
    same: Bool[Array, "n n"] = labels[:, None] == labels[None, :]
    positive, negative = same & ~jnp.eye(labels.shape[0], dtype=bool), ~same
    square = squared_euclidean(features, features)
    d = _distances(square, squared)
    if mining == "hard":
        return _hard(d, positive, negative, margin)
    if mining == "semi-hard":
        return _semi_hard(d, square, positive, negative, margin)
    if mining in ("all", "active"):
        return _all(d, positive, negative, margin, mining == "active")
    raise ValueError(f"mining must be hard, semi-hard, all or active, got {mining!r}.")
