"""Triplet loss with the triplets mined in the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.ops.pairwise import safe_sqrt, squared_euclidean
from rml.ops.shapes import check_finite, check_shapes
from rml.ops.similarity import wide

Margin = float | Float[Array, ""]
ROUNDINGS = 16  # units in the last place by which equal squared distances may differ


def _mean(x: Array, keep: Array) -> Array:
    return jnp.sum(jnp.where(keep, x, 0.0)) / jnp.maximum(jnp.sum(keep), 1)


def _hard(d: Array, positive: Array, negative: Array, margin: Margin) -> Array:
    furthest = jnp.max(jnp.where(positive, d, -jnp.inf), axis=1)
    nearest = jnp.min(jnp.where(negative, d, jnp.inf), axis=1)
    keep = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    return _mean(jax.nn.relu(jnp.where(keep, furthest - nearest, 0.0) + margin), keep)


def _sorted_negatives(d: Array, negative: Array) -> Array:
    """Each anchor's distances to negatives in ascending order, infinite ones behind them."""
    return jnp.sort(jnp.where(negative, d, jnp.inf), axis=1)


def _count(rows: Array, limits: Array, side: str) -> Array:
    """How many numbers of a sorted row are below each of its limits; of side "right", or equal."""
    return jax.vmap(lambda row, limit: jnp.searchsorted(row, limit, side=side))(rows, limits)


def _rounding(z: Array, reach: Array) -> Array:
    """By how much rounding may move squared distances of about `reach` from the rows of a pair.

    It is that of squared lengths, after moving the mean to the origin, and a row within reach of
    the pair is not much longer than these: a row that is far away blurs no near pair.
    """
    lengths = jnp.sum(jnp.square(z - jnp.mean(z, axis=0)), axis=1)
    return ROUNDINGS * jnp.finfo(z.dtype).eps * (lengths[:, None] + lengths + jnp.abs(reach))


def _semi_hard(
    d: Array,
    square: Array,
    z: Array,
    positive: Array,
    negative: Array,
    margin: Margin,
    squared: bool,
) -> Array:
    number = jnp.sum(negative, axis=1)
    # A negative as far as the positive is not further, though rounding may say so.
    further = square + _rounding(z, square)
    negatives = _sorted_negatives(square, negative)
    beyond = _count(negatives, further, "right")
    # Where no negative is further than the positive, the furthest there is.
    index = jnp.clip(beyond, 0, jnp.maximum(number - 1, 0)[:, None])
    chosen = jnp.take_along_axis(negatives, index, axis=1)
    chosen = chosen if squared else safe_sqrt(chosen)
    keep = positive & (number > 0)[:, None]
    return _mean(jax.nn.relu(jnp.where(keep, d - chosen, 0.0) + margin), keep)


def _hinges(d: Array, limit: Array, negative: Array) -> Array:
    """The sum over each pair's hinges, with one of a negative that is nearer than the limit."""
    # These are a prefix of the sorted ones, so that n³ triplets cost n² log n.
    negatives = _sorted_negatives(d, negative)
    finite = jnp.where(jnp.isfinite(negatives), negatives, 0.0)
    prefix = jnp.pad(jnp.cumsum(finite, axis=1), ((0, 0), (1, 0)))
    nearer = _count(negatives, limit, "left")
    return nearer * limit - jnp.take_along_axis(prefix, nearer, axis=1)


def _active(square: Array, limit: Array, z: Array, negative: Array) -> Array:
    """How many of each pair's hinges are above zero, for a limit of squared distances."""
    # A negative further by the margin is not nearer, though rounding may say so.
    below = limit - _rounding(z, limit)
    return _count(_sorted_negatives(square, negative), below, "left")


def triplet_loss(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    margin: Margin = 0.2,
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
      ValueError: If shapes do not fit, `margin` is not finite, or `mining` is unknown.

    Source: Schroff et al. 2015, FaceNet, section 3.2 (semi-hard); Hermans et al. 2017, In Defense
    of the Triplet Loss, eq. 5 (hard) and 6 (all), and section 2 for active.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"))
    check_finite(margin=margin)
    same: Bool[Array, "n n"] = labels[:, None] == labels[None, :]
    positive, negative = same & ~jnp.eye(labels.shape[0], dtype=bool), ~same
    (z,) = wide(features)
    square = squared_euclidean(z, z)
    d = square if squared else safe_sqrt(square)
    if mining == "hard":
        return _hard(d, positive, negative, margin)
    if mining == "semi-hard":
        return _semi_hard(d, square, z, positive, negative, margin, squared)
    if mining in ("all", "active"):
        limit = d + margin
        number = jnp.sum(negative, axis=1, keepdims=True)
        if mining == "active":
            number = _active(square, limit if squared else limit * jnp.abs(limit), z, negative)
        total, triplets = (
            jnp.sum(jnp.where(positive, x, 0)) for x in (_hinges(d, limit, negative), number)
        )
        return total / jnp.maximum(triplets, 1)
    raise ValueError(f"mining must be hard, semi-hard, all or active, got {mining!r}.")
