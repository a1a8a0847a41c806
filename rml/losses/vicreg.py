"""VICReg: invariance, variance and covariance of two views, without negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops import full_precision
from rml.ops.shapes import check_above_0, check_between, check_finite, check_shapes


@full_precision
def vicreg(
    a: Float[Array, "n d"],
    b: Float[Array, "n d"],
    *,
    invariance: float | Float[Array, ""] = 25.0,
    variance: float | Float[Array, ""] = 25.0,
    covariance: float | Float[Array, ""] = 1.0,
    eps: float = 1e-4,
) -> Float[Array, ""]:
    """Computes the weighted sum of the three terms, variance and covariance of both views.

    The invariance term is the mean over rows and dimensions, as in the paper's algorithm 1, for
    which the default weights were chosen. It is a loss of the batch: no example has a value of its
    own. The authors' code, and lightly, halve the variance term, which the paper's eq. 6 does not:
    `variance=12.5` here is their 25. Weights are at least 0.

    Args:
      a: First views, not normalised; at least two rows.
      b: Second views.
      invariance: Weight of the mean squared difference of the views.
      variance: Weight of the hinge that keeps each dimension's standard deviation above 1, of
        which the two views' values are added, not averaged.
      covariance: Weight of the squared covariances of different dimensions, divided by d.
      eps: Added to the variance under the square root, above 0.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, there is but one row, which has no variance, `eps` is not
        above 0, or a weight is below 0 or infinite.

    Source: Bardes et al. 2022, VICReg, eq. 1 to 6 and algorithm 1.
    """
    check_shapes(a=(a, "n d"), b=(b, "n d"))
    check_above_0(eps=eps)
    check_between(0, invariance=invariance, variance=variance, covariance=covariance)
    check_finite(invariance=invariance, variance=variance, covariance=covariance)
    n, d = a.shape
    if n < 2:
        raise ValueError(f"vicreg needs at least two rows for a variance, got {n}.")

    def spread(z: Array) -> Array:
        z = z - jnp.mean(z, axis=0)
        cov = z.T @ z / (n - 1)
        var = jnp.diagonal(cov)
        hinge = jnp.mean(jax.nn.relu(1 - jnp.sqrt(var + eps)))
        return variance * hinge + covariance * (jnp.sum(cov * cov) - jnp.sum(var * var)) / d

    a, b = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (a, b))
    return invariance * jnp.mean((a - b) ** 2) + spread(a) + spread(b)
