"""Barlow Twins: the cross-correlation of two views brought to the identity."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops import full_precision
from rml.ops.shapes import check_above_0, check_between, check_finite, check_shapes

ROUNDINGS = 8  # units in the last place by which a mean of equal numbers may be off


@full_precision
def barlow_twins(
    a: Float[Array, "n d"],
    b: Float[Array, "n d"],
    *,
    redundancy: float | Float[Array, ""] = 5e-3,
    eps: float = 1e-12,
) -> Float[Array, ""]:
    """Computes Σ_i (1 - C_ii)² + redundancy · Σ_{i≠j} C_ij², C the cross-correlation matrix.

    It is a loss of the batch: no example has a value of its own. Columns are standardised by the
    biased variance; the authors' BatchNorm does the same with 1e-5 added.

    Args:
      a: First views, not normalised; at least two rows.
      b: Second views.
      redundancy: Weight of the off-diagonal terms, the paper's λ, at least 0.
      eps: Variance below which a dimension counts as this wide, above 0. One that is constant, up
        to the rounding of its mean, correlates with nothing.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, there is but one row, which has no correlation, `eps` is not
        above 0, or `redundancy` is below 0 or infinite.

    Source: Zbontar et al. 2021, Barlow Twins: Self-Supervised Learning via Redundancy Reduction,
    eq. 1 and 2.
    """
    check_shapes(a=(a, "n d"), b=(b, "n d"))
    check_above_0(eps=eps)
    check_between(0, redundancy=redundancy)
    check_finite(redundancy=redundancy)
    n = a.shape[0]
    if n < 2:
        raise ValueError(f"barlow_twins needs at least two rows for a correlation, got {n}.")

    def standardise(z: Array) -> Array:
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        rounding = (ROUNDINGS * jnp.finfo(z.dtype).eps) ** 2 * jnp.mean(z * z, axis=0)
        z = z - jnp.mean(z, axis=0)
        variance = jnp.mean(z * z, axis=0)
        # What rounding leaves of a constant would be scaled up to ±1 and correlate perfectly.
        constant = variance <= rounding  # not where it is NaN, which is to be seen
        return jnp.where(constant, 0, z * jax.lax.rsqrt(jnp.maximum(variance, eps)))

    c = standardise(a).T @ standardise(b) / n
    diagonal = jnp.diagonal(c)
    off = jnp.sum(c * c) - jnp.sum(diagonal * diagonal)
    return jnp.sum((1 - diagonal) ** 2) + redundancy * off
