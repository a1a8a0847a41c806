"""Positive definite algebra: jittered Cholesky factors, log-determinants, zero-mean Gaussians."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from rml.errors import UserError
from rml.ops.precision import full_precision
from rml.ops.similarity import alike, wide

MAX_JITTER = 1e-3  # share of the mean diagonal; more would be another matrix


class Cholesky(NamedTuple):
    """A factor and what it took to get it.

    Attributes:
      factor: Lower triangular L with L Lᵀ = A + jitter I; NaN where no jitter helped.
      jitter: Number added to the diagonal; infinite where no jitter helped.
    """

    factor: Float[Array, "n n"]
    jitter: Float[Array, ""]


def cholesky(a: Float[Array, "n n"], *, jitter: float = 0.0) -> Cholesky:
    """Computes a Cholesky factor with the least jitter of a ladder that makes it exist.

    The ladder is `jitter`, then the dtype's rounding unit times n, then ten times that and so on,
    up to a thousandth, all times the mean of the diagonal.

    Args:
      a: Symmetric, positive semi-definite up to rounding; half precision is promoted.
      jitter: Share of the mean diagonal that is added from the start.

    Returns:
      The factor and the jitter that was added, which carries no gradient.
    """
    (a,) = wide(a)
    added = _least_jitter(jax.lax.stop_gradient(a), jnp.asarray(jitter, a.dtype))
    identity = jnp.eye(a.shape[0], dtype=a.dtype)
    factor = jax.lax.linalg.cholesky(a + added * identity, symmetrize_input=True)
    return Cholesky(factor, jnp.where(jnp.isfinite(factor[-1, -1]), added, jnp.inf))


@jax.jit  # a loop outside of a program would be compiled at every call
def _least_jitter(a: Float[Array, "n n"], jitter: Float[Array, ""]) -> Float[Array, ""]:
    """The ladder's first jitter with which the factor exists, NaN where there is none."""
    n = a.shape[0]
    scale = jnp.trace(a) / n
    unit = jnp.finfo(a.dtype).eps * n
    identity = jnp.eye(n, dtype=a.dtype)

    def share(step: Array) -> Array:
        return jnp.where(step == 0, jitter, jitter + unit * 10.0 ** (step - 1.0))

    def fails(step: Array) -> Array:
        shifted = a + scale * share(step) * identity
        factor = jax.lax.linalg.cholesky(shifted, symmetrize_input=False)
        return (share(step) <= MAX_JITTER) & ~jnp.isfinite(factor[-1, -1])

    last = share(jax.lax.while_loop(fails, lambda s: s + 1, jnp.zeros((), a.dtype)))
    # The share after the last of the ladder was not tried and would be another matrix.
    return scale * jnp.where((last <= MAX_JITTER) | (last == jitter), last, jnp.nan)


def logdet(factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Computes the log-determinant of L Lᵀ from its triangular factor L."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


@full_precision
def solve_lower(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Computes L⁻¹ b of a lower triangular L."""
    factor, b = wide(factor, b)
    return solve_triangular(factor, b, lower=True)


@full_precision
def gaussian_kl(q: Float[Array, "n n"], p: Float[Array, "n n"]) -> Float[Array, ""]:
    """Computes KL(N(0, Q Qᵀ) || N(0, P Pᵀ)) in nats, from the lower triangular factors Q and P."""
    n = q.shape[0]
    return (jnp.sum(solve_lower(p, q) ** 2) - n + logdet(p) - logdet(q)) / 2


def gaussian_log_density(y: Float[Array, "n c"], factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Computes the log-density of the columns of `y`, independent draws of N(0, L Lᵀ), in nats."""
    n, columns = y.shape
    constant = n * jnp.log(2 * jnp.pi) + logdet(factor)
    return -(jnp.sum(solve_lower(factor, y) ** 2) + columns * constant) / 2


@jax.jit  # a choice outside of a program would be compiled at every call
@full_precision
def noisy_log_density(
    y: Float[Array, "n c"], k: Float[Array, "n n"], *, noise: float | Array
) -> Float[Array, ""]:
    """Computes the log-density of columns of `y`, independent draws of N(0, K + noise I), in nats.

    By Cholesky; where a pivot is near rounding, as for duplicates at little noise, by eigenvalues
    of K, of which those within rounding of zero are zero. So nothing is added to the noise.

    Args:
      y: The columns.
      k: Symmetric, positive semi-definite up to rounding; `y` and `k` are widened to one type.
      noise: Variance.

    Returns:
      The log-density; NaN if K + noise I is not positive definite beyond rounding.
    """
    y, k = alike(y, k)
    noise = jnp.asarray(noise, k.dtype)
    factor, jitter = cholesky(k + noise * jnp.eye(k.shape[0], dtype=k.dtype))
    least = jnp.min(jnp.diagonal(factor)) ** 2
    # A pivot less than this share of the diagonal has fewer than three correct digits.
    short = least < 1e3 * jnp.finfo(k.dtype).eps * jnp.trace(k) / k.shape[0]
    singular = ((jitter > 0) | short) & jnp.isfinite(jitter)

    def by_eigenvalues(y: Array, k: Array, noise: Array) -> Array:
        return _spectral_log_density(y, k, noise, *_spectrum(k, singular))

    def by_cholesky(y: Array, k: Array, noise: Array) -> Array:
        return gaussian_log_density(y, factor)

    return jax.lax.cond(singular, by_eigenvalues, by_cholesky, y, k, noise)


def _spectrum(k: Array, wanted: Array) -> tuple[Array, Array]:
    """Computes eigenvalues and eigenvectors, if wanted; a loop, so that `vmap` skips it too.

    They are those of L Lᵀ for a pivoted Cholesky factor L that stops where pivots are rounding.
    The squares of L's singular values have errors of eps² |K|, eigenvalues of K those of eps |K|.
    """
    k = jax.lax.stop_gradient(k)
    n, largest = k.shape[0], jnp.max(jnp.diagonal(k))
    rounding = jnp.finfo(k.dtype).eps * (10 + n**0.5) * largest

    def pivot(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, rest = state
        row = jnp.argmax(rest)
        found = rest[row] > rounding
        root = jnp.sqrt(jnp.where(found, rest[row], 1))
        column = jnp.where(found, (k[:, row] - factor @ factor[row]) / root, 0)
        return factor.at[:, index].set(column), (rest - column**2).at[row].set(0)

    def decompose(_: Any) -> Any:
        start = jnp.zeros_like(k), jnp.diagonal(k)
        factor, _ = jax.lax.fori_loop(0, n, pivot, start)
        vectors, roots, _ = jnp.linalg.svd(factor)
        return jnp.zeros((), bool), roots**2, vectors

    start = wanted, jnp.ones(n, k.dtype), jnp.eye(n, dtype=k.dtype)
    return jax.lax.while_loop(lambda state: state[0], decompose, start)[1:]


@jax.custom_jvp
def _spectral_log_density(y: Array, k: Array, noise: Array, values: Array, vectors: Array) -> Array:
    n, columns = y.shape
    rotated = vectors.T @ y
    squares = jnp.sum(rotated**2 / (values + noise)[:, None])
    constant = n * jnp.log(2 * jnp.pi) + jnp.sum(jnp.log(values + noise))
    return -(squares + columns * constant) / 2


@_spectral_log_density.defjvp
@full_precision
def _(primals: Any, tangents: Any) -> Any:
    (y, k, noise, values, vectors), (dy, dk, dnoise, *_) = primals, tangents
    inverse = 1 / (values + noise)[:, None]

    def solve(b: Array) -> Array:  # by a rule that has derivatives again
        return jax.lax.custom_linear_solve(
            lambda x: k @ x + noise * x,
            b,
            lambda _, b: vectors @ (inverse * (vectors.T @ b)),
            symmetric=True,
        )

    change, dual = dk + dnoise * jnp.eye(k.shape[0], dtype=k.dtype), solve(y)
    slope = jnp.sum(dual * (change @ dual)) / 2 - jnp.sum(dual * dy)
    slope -= y.shape[1] * jnp.trace(solve(change)) / 2
    return _spectral_log_density(y, k, noise, values, vectors), slope


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
