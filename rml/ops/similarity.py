"""Similarities between rows of two arrays, accumulated in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def normalize(x: Float[Array, "*batch d"], *, eps: float = 1e-12) -> Float[Array, "*batch d"]:
    """Scales every row to unit Euclidean length, in float32 or wider.

    A zero row stays zero and has gradient zero; a half-precision row comes back as float32.

    Args:
      x: Rows to scale.
      eps: Squared length below which a row counts as this long.

    Returns:
      The rows with unit length.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))
