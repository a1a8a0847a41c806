"""Random numbers for augmentations: independent by example, and of one key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Number = float | int
Range = Sequence[Number]
"""A pair, low and high; a list where it comes from JSON."""


def uniforms(key: Key[Array, ""], n: int, count: int, copies: int = 1) -> Float[Array, "count n"]:
    """Draws uniform numbers in [0, 1), `count` for each of `n` examples.

    JAX's counter-based generator makes number (i, j) from its position alone: what example i gets
    does not depend on the size of the batch, nor on how it is sharded. Of a batch whose images have
    `copies` rows each, copy c of image i gets what it would where copies of the batch lie behind
    each other: row c * n / copies + i.
    """
    drawn = jax.random.uniform(key, (n, count))
    if copies > 1:
        drawn = drawn.reshape(copies, n // copies, count).swapaxes(0, 1).reshape(n, count)
    return drawn.T


def between(low: Number, high: Number, uniform: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Maps [0, 1) to [low, high); exactly `low` where both are equal."""
    return low + (high - low) * uniform


def choose(
    chosen: Float[Array, " n"],
    p: Number,
    changed: Float[Array, "n h w c"],
    images: Float[Array, "n h w c"],
) -> Float[Array, "n h w c"]:
    """Takes the changed image where the example's uniform number is below `p`."""
    return jnp.where((chosen < p)[:, None, None, None], changed, images)


def check_probability(p: Number) -> None:
    """Raises ValueError if `p` is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability in [0, 1], got {p}")


def check_range(
    name: str, bounds: Range, *, low: Number = 0.0, high: Number = float("inf")
) -> None:
    """Raises ValueError if `bounds` is no ascending pair of numbers in (low, high]."""
    if len(bounds) != 2 or not low < bounds[0] <= bounds[1] <= high:
        raise ValueError(f"{name} must be an ascending pair in ({low}, {high}], got {bounds}")
