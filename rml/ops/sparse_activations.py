"""Activations most of whose values are exactly zero."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def fatrelu(x: Float[Array, "*b"], threshold: float | Array) -> Float[Array, "*b"]:
    """Keeps what is at least a threshold, and sets the rest to zero: x where x ≥ t, else 0.

    Args:
      x: Values.
      threshold: The threshold t, not negative; with 0 it is ReLU.

    Returns:
      Values of the same shape, NaN where x is; the gradient is 1 where x is kept and above 0,
      else 0.

    Source: Kurtz et al., Inducing and Exploiting Activation Sparsity for Fast Inference on Deep
    Neural Networks, ICML 2020; ProSparse (Song et al., arXiv:2402.13516), section 3.2, step 3.
    """
    return jnp.where((x < threshold) | (x <= 0), 0, x)


def shifted_relu(x: Float[Array, "*b"], shift: float | Array) -> Float[Array, "*b"]:
    """Computes max(x - b, 0).

    Args:
      x: Values.
      shift: The shift b.

    Source: Mirzadeh et al., ReLU Strikes Back, arXiv:2310.04564, section 5.3.
    """
    return jax.nn.relu(x - shift)


def keep_largest(x: Float[Array, "*b d"], count: int) -> Float[Array, "*b d"]:
    """Keeps the entries of the largest magnitudes of every row, and sets the rest to zero.

    Args:
      x: Rows.
      count: Number of entries kept a row, at least 1; all if it is d or more. Entries equal to the
        smallest one kept are kept too.

    Raises:
      ValueError: The count is below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}, expected at least 1 entry kept a row")
    if count >= x.shape[-1]:
        return x
    size = jnp.abs(jax.lax.stop_gradient(x))
    least = jax.lax.top_k(size, count)[0][..., -1:]
    return jnp.where(size < least, 0, x)
