"""Alignment and uniformity of features on the unit sphere."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.evaluation.checks import require_matrix
from rml.ops.pairwise import safe_sqrt
from rml.ops.similarity import normalize
from rml.ops.streaming import symmetric_logsumexp


def alignment(
    x: Float[Array, "n d"], y: Float[Array, "n d"], *, alpha: float = 2.0
) -> Float[Array, ""]:
    """Computes the mean distance, to the power `alpha`, of normalised rows of positive pairs.

    Args:
      x: One view of each example.
      y: Another view of each, in the same order.
      alpha: Power of the distance.

    Returns:
      0 where all pairs coincide; 4 at most for `alpha` 2.

    Raises:
      ValueError: If the shapes differ or are not [n, d], there are no rows, a feature is not
        finite (outside `jit`), or `alpha` is not positive.

    Source: Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment
      and Uniformity on the Hypersphere", section 4.1, L_align.
    """
    if x.shape != y.shape:
        raise ValueError(f"positive pairs need equal shapes, got {x.shape} and {y.shape}")
    if x.shape[0] == 0:
        raise ValueError(f"alignment needs at least one pair, got arrays of shape {x.shape}")
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    require_matrix("x", x)
    require_matrix("y", y)
    squares = jnp.sum((normalize(x) - normalize(y)) ** 2, axis=1)
    return jnp.mean(squares if alpha == 2 else safe_sqrt(squares) ** alpha)


def uniformity(
    x: Float[Array, "n d"], *, t: float = 2.0, block: int | None = None
) -> Float[Array, ""]:
    """Computes the log of the mean of exp(-t |x_i - x_j|²) over all pairs of normalised rows.

    This Gaussian potential is summed in log space and in blocks: memory grows with n, not with n².
    A zero row counts as orthogonal to every row.

    Args:
      x: Features.
      t: Sharpness of the potential.
      block: Rows of one block; chosen by size if absent.

    Returns:
      0 where all rows coincide, less the more evenly they spread.

    Raises:
      ValueError: If the shape is not [n, d], there are fewer than two rows, a feature is not
        finite (outside `jit`), or `t` or `block` is not positive.

    Source: Wang & Isola 2020, section 4.1, L_uniform.
    """
    n = x.shape[0]
    if n < 2:
        raise ValueError(f"uniformity needs at least two rows, got shape {x.shape}")
    if t <= 0:
        raise ValueError(f"t must be positive, got {t}")
    require_matrix("x", x)
    return _uniformity(x, t, block)


@partial(jax.jit, static_argnames=("t", "block"))  # one program instead of one an operation
def _uniformity(x: Array, t: float, block: int | None) -> Array:
    n = x.shape[0]
    # Between unit rows -t |x - y|² = 2t x·y - 2t.
    rows = symmetric_logsumexp(math.sqrt(2 * t) * normalize(x), mask=_other_rows, block_size=block)
    return jax.nn.logsumexp(rows) - 2 * t - math.log(n * (n - 1))


def _other_rows(row: Array, col: Array, row_label: Array | None, col_label: Array | None) -> Array:
    return row != col
