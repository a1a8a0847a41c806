"""How many directions features use: diagnostics of dimensional collapse."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float

from rml.evaluation.checks import require_matrix


def collapsed(features: Float[Array, "n d"], *, tolerance: float = 1e-5) -> bool:
    """Tells whether all rows are equal, up to rounding.

    Args:
      features: One row per example.
      tolerance: Largest difference of a row from the first, as a share of the largest magnitude.

    Returns:
      True also for a single row.

    Raises:
      ValueError: As `singular_values`.
    """
    _require_features(features)
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return bool(jnp.max(jnp.abs(x - x[:1])) <= tolerance * jnp.max(jnp.abs(x)))


def singular_values(
    features: Float[Array, "n d"], *, center: bool = False
) -> Float[Array, " min(n,d)"]:
    """Computes the singular values of the matrix of features, falling.

    They come from the matrix itself, not from its Gram matrix, whose rounding would hide every
    value below 3e-4 of the largest.

    Args:
      features: One row per example.
      center: Subtract the mean row first, so that squares / n are variances along principal axes.

    Returns:
      min(n, d) values in float32 or wider.

    Raises:
      ValueError: If features are no matrix, are empty, or one is not finite (outside `jit`).
    """
    _require_features(features)
    return _singular_values(features, center)


def _require_features(features: Array) -> None:
    if 0 in features.shape:
        raise ValueError(f"features must not be empty, got shape {features.shape}")
    require_matrix("features", features)


@partial(jax.jit, static_argnames="center")  # one program instead of one an operation
def _singular_values(features: Array, center: bool) -> Array:
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    if center:
        # The rounded mean of equal rows may lie beside them.
        x = jnp.where(jnp.all(x == x[:1], axis=0), 0, x - jnp.mean(x, axis=0))
    return jnp.asarray(jnp.linalg.svd(x, compute_uv=False))


@partial(jax.jit, static_argnames="epsilon")
def _entropy_rank(values: Array, epsilon: float) -> Array:
    """Exp of the entropy of the values' shares, to each of which epsilon is added."""
    shares = _shares(values) + epsilon
    some = shares > 0  # the slope of the entropy is infinite at 0
    rank = jnp.exp(jnp.sum(jnp.where(some, entr(jnp.where(some, shares, 1)), 0)))
    return jnp.where(values[0] > 0, rank, 0)


def _shares(values: Array) -> Array:
    """Divides by the sum; all zero if the sum is."""
    total = jnp.sum(values)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0)


def rankme(features: Float[Array, "n d"], *, epsilon: float = 1e-7) -> Float[Array, ""]:
    """Computes RankMe, exp of the entropy of shares p = σ / |σ|₁ + ε of the singular values.

    The features are not centred.

    Args:
      features: One row per example.
      epsilon: The constant ε of the paper, added to each share.

    Returns:
      Between about 1 and min(n, d); 0 for a zero matrix, which the paper leaves undefined.

    Raises:
      ValueError: As `singular_values`.

    Source: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained
      Self-Supervised Representations by Their Rank", equation 1.
    """
    return _entropy_rank(singular_values(features), epsilon)


def effective_rank(features: Float[Array, "n d"], *, center: bool = False) -> Float[Array, ""]:
    """Computes the effective rank, exp of the entropy of σ / |σ|₁; RankMe adds ε to each share.

    Args:
      features: One row per example.
      center: Subtract the mean row first.

    Returns:
      Between 1 and min(n, d), scale-free; 0 for a zero matrix.

    Raises:
      ValueError: As `singular_values`.

    Source: Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality",
      section 2.
    """
    return _entropy_rank(singular_values(features, center=center), 0.0)


def participation_ratio(features: Float[Array, "n d"], *, center: bool = True) -> Float[Array, ""]:
    """Computes the participation ratio (Σλ)² / Σλ² of the eigenvalues λ of the covariance.

    Args:
      features: One row per example.
      center: Subtract the mean row first; without, λ are those of the second moment.

    Returns:
      Between 1 and min(n, d), scale-free; 0 for constant features (zero if not centred).

    Raises:
      ValueError: As `singular_values`.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    return _participation_ratio(singular_values(features, center=center))


@jax.jit
def _participation_ratio(values: Array) -> Array:
    # Scaled by the largest first: fourth powers overflow soon.
    power = (values / jnp.where(values[0] > 0, values[0], 1)) ** 2
    return jnp.where(values[0] > 0, jnp.sum(power) ** 2 / jnp.maximum(jnp.sum(power**2), 1), 0)
