"""Similarities between rows of two arrays, accumulated in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

SHORT = 1e-12  # squared length of a row whose squares are near the smallest numbers of float32


def wide(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Widens arrays of half precision to float32 and leaves others as they are."""
    found = map(jnp.asarray, arrays)
    return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in found)


def alike(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Widens arrays to the one type that holds all of them, float32 or wider."""
    found = wide(*arrays)
    dtype = jnp.result_type(*found)
    return tuple(x.astype(dtype) for x in found)


def unit_scale(x: Float[Array, "..."], *, axis: int | None = None) -> Float[Array, "..."]:
    """Finds the power of two that brings the largest absolute value into [1/2, 1), 1 for zeros.

    Numbers times it lose no digit, and their squares neither vanish nor overflow. At the ends of
    the range, where it or its inverse would be no number, it is as near to that as it can be. No
    gradient flows through it, which what is indifferent to the scale of `x` does not need.

    Args:
      x: Numbers.
      axis: Axis along which the largest value is taken, all axes if not given.

    Returns:
      The factor, with axes of length 1 where the largest value was taken.
    """
    constant = jnp.abs(jax.lax.stop_gradient(x))
    largest = jnp.max(constant, axis=axis, keepdims=True, initial=0)
    _, exponent = jnp.frexp(largest)
    bound = jnp.finfo(largest.dtype).maxexp - 2
    return jnp.ldexp(jnp.ones_like(largest), -jnp.clip(exponent, -bound, bound))


def normalize(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Scales every row to unit Euclidean length, in float32 or wider.

    A zero row stays zero and has gradient zero; a half-precision row comes back as float32.

    Args:
      x: Rows to scale.

    Returns:
      The rows with unit length.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Squares of a short row lose digits, powers of a long one overflow: either is scaled by its
    # largest number first, a factor that the direction does not depend on.
    constant = jax.lax.stop_gradient(x)
    largest = jnp.max(jnp.abs(constant), axis=-1, keepdims=True, initial=0)
    squared = jnp.sum(constant * constant, axis=-1, keepdims=True)
    scaled = (squared < SHORT) | (squared > 1 / SHORT)
    zero = largest == 0
    x = jnp.where(zero, 0, jnp.where(scaled, x / jnp.where(zero, 1, largest), x))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), SHORT))
