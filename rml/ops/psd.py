"""Positive definite algebra: jittered Cholesky factors, log-determinants, zero-mean Gaussians."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from rml.errors import UserError

MAX_JITTER = 1e-3  # share of the mean diagonal; more would be another matrix


class Cholesky(NamedTuple):
    """A factor and what it took to get it.

    Attributes:
      factor: Lower triangular L with L Lᵀ = A + jitter I; NaN where no jitter helped.
      jitter: What was added to the diagonal; infinite where no jitter helped.
    """

    factor: Float[Array, "n n"]
    jitter: Float[Array, ""]


def cholesky(a: Float[Array, "n n"], *, jitter: float = 0.0) -> Cholesky:
    """Cholesky factor of a symmetric matrix, with the least jitter of a ladder that makes it exist.

    The ladder is `jitter`, then the dtype's rounding unit times n, then ten times that and so on,
    up to a thousandth, all times the mean of the diagonal.

    Args:
      a: Symmetric, positive semi-definite up to rounding.
      jitter: Share of the mean diagonal that is added from the start.

    Returns:
      The factor and the jitter that was added, which carries no gradient.
    """
    n = a.shape[0]
    scale = jax.lax.stop_gradient(jnp.trace(a)) / n
    unit = jnp.finfo(a.dtype).eps * n
    identity = jnp.eye(n, dtype=a.dtype)
    fixed = jax.lax.stop_gradient(a)

    def share(step: Array) -> Array:
        return jnp.where(step == 0, jitter, jitter + unit * 10.0 ** (step - 1.0))

    def fails(step: Array) -> Array:
        shifted = fixed + scale * share(step) * identity
        factor = jax.lax.linalg.cholesky(shifted, symmetrize_input=False)
        return (share(step) <= MAX_JITTER) & ~jnp.isfinite(factor[-1, -1])

    step = jax.lax.while_loop(fails, lambda s: s + 1, jnp.zeros((), a.dtype))
    added = scale * share(step)
    factor = jax.lax.linalg.cholesky(a + added * identity, symmetrize_input=True)
    return Cholesky(factor, jnp.where(jnp.isfinite(factor[-1, -1]), added, jnp.inf))


def logdet(factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Log-determinant of L Lᵀ from its triangular factor L."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


def solve_lower(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """L⁻¹ b of a lower triangular L."""
    return solve_triangular(factor, b, lower=True)


def gaussian_kl(q: Float[Array, "n n"], p: Float[Array, "n n"]) -> Float[Array, ""]:
    """KL(N(0, Q Qᵀ) || N(0, P Pᵀ)) in nats, from the lower triangular factors Q and P."""
    n = q.shape[0]
    return (jnp.sum(solve_lower(p, q) ** 2) - n + logdet(p) - logdet(q)) / 2


def gaussian_log_density(y: Float[Array, "n c"], factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Log-density of the columns of `y`, independent draws of N(0, L Lᵀ), in nats."""
    n, columns = y.shape
    constant = n * jnp.log(2 * jnp.pi) + logdet(factor)
    return -(jnp.sum(solve_lower(factor, y) ** 2) + columns * constant) / 2


def require_finite(name: str, a: Float[Array, "n n"]) -> None:
    """Raises an error that names `a` unless all its entries are finite; inside `jit` it is silent.

    Raises:
      UserError: Names the matrix, its size and the number of bad entries.
    """
    if isinstance(a, jax.core.Tracer):
        return
    if bad := int(jnp.sum(~jnp.isfinite(a))):
        n = a.shape[0]
        raise UserError(f"{name} ({n} x {n}) has {bad} entries that are not finite")


def require_positive_definite(name: str, a: Float[Array, "n n"]) -> None:
    """Raises an error with the condition of `a` unless it is finite and has a Cholesky factor.

    Nothing can be checked inside `jit`.

    Raises:
      UserError: Names the matrix, its size, its eigenvalues and its condition, which is their
        largest size over their least.
    """
    if isinstance(a, jax.core.Tracer):
        return
    require_finite(name, a)
    if not bool(jnp.isfinite(cholesky(a).jitter)):
        n, values = a.shape[0], np.linalg.eigvalsh(np.asarray(a, np.float64))
        least, most = np.abs(values).min(), np.abs(values).max()
        condition = most / least if least > 0 else np.inf
        raise UserError(
            f"{name} ({n} x {n}) is not positive definite: eigenvalues from {values[0]:.3g} to "
            f"{values[-1]:.3g}, condition {condition:.3g}, and no jitter helped; expected distinct "
            "inputs, a kernel with noise or another length-scale"
        )
