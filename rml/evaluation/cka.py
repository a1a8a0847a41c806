"""Linear centred kernel alignment between two representations of the same examples."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.evaluation.checks import require_matrix
from rml.ops.pairwise import dot_product
from rml.ops.similarity import unit_scale, wide


def linear_cka(
    x: Float[Array, "n d"], y: Float[Array, "n e"], *, debiased: bool = False
) -> Float[Array, ""]:
    """Computes linear CKA, ⟨K, L⟩ / (|K| |L|) of centred Gram matrices K = X Xᵀ and L = Y Yᵀ.

    Rotations and the scale of either side do not change it. It comes from d × e products where
    both representations are narrower than n, otherwise from the n × n Gram matrices.

    Args:
      x: One representation, one row per example.
      y: Another of the same examples, of any width.
      debiased: Use the unbiased estimator of HSIC, which does not grow with width where n is
        small; the value may then be negative.

    Returns:
      1 for equal representations; NaN inside `jit` where one is constant, and of the unbiased
      estimator where its HSIC of one with itself is 0 but for rounding, as of equidistant rows.

    Raises:
      ValueError: If the numbers of rows differ, there are fewer than 2 (4 if `debiased`), a
        representation is no matrix, or, outside `jit`, a feature is not finite or a representation
        is constant.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited",
      equations 3-4; the unbiased estimator: Song et al. 2012, "Feature Selection via Dependence
      Maximization", equation 5.
    """
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"CKA needs the same examples twice, got shapes {x.shape} and {y.shape}")
    least = 4 if debiased else 2
    if x.shape[0] < least:
        raise ValueError(f"CKA needs at least {least} examples, got {x.shape[0]}")
    for name, values in (("x", x), ("y", y)):
        require_matrix(name, values)
        if not isinstance(values, jax.core.Tracer) and bool(jnp.all(values == values[0])):
            raise ValueError(f"CKA is undefined for the constant representation {name}")
    return _linear_cka(x, y, debiased=debiased)


@partial(jax.jit, static_argnames="debiased")
def _linear_cka(x: Array, y: Array, *, debiased: bool) -> Array:
    n = x.shape[0]
    x, y = _standard(x), _standard(y)
    narrow = max(x.shape[1], y.shape[1]) < n

    def hsic(a: Array, b: Array) -> Array:
        # Up to a factor common to all three, which the ratio cancels.
        if narrow:
            product = jnp.sum(dot_product(a.T, b.T) ** 2)
        else:
            product = jnp.sum(dot_product(a, a) * dot_product(b, b))
        if not debiased:
            return product
        # The diagonals taken out; the rows of a centred Gram matrix sum to zero.
        diagonal_a, diagonal_b = jnp.sum(a * a, axis=1), jnp.sum(b * b, axis=1)
        found = (
            product
            - n / (n - 2) * jnp.vdot(diagonal_a, diagonal_b)
            + jnp.sum(diagonal_a) * jnp.sum(diagonal_b) / ((n - 1) * (n - 2))
        )
        if a is b:
            found = jnp.where(found > 100 * jnp.finfo(a.dtype).eps * product, found, jnp.nan)
        return found

    return hsic(x, y) / jnp.sqrt(hsic(x, x) * hsic(y, y))


def _standard(x: Array) -> Array:
    """Centred, in float32 or wider, at unit scale so that fourth powers stay in range."""
    (x,) = wide(x)
    x = x * unit_scale(x)  # whose squares stay in range
    # The rounded mean of equal rows may lie beside them.
    x = jnp.where(jnp.all(x == x[:1]), 0, x - jnp.mean(x, axis=0))
    return x / jnp.sqrt(jnp.mean(x * x))
