"""The optimum of a deep linear kernel machine in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rml.errors import UserError
from rml.kernels.layers import exact_factor
from rml.ops.precision import full_precision
from rml.ops.psd import require_positive_definite, solve_lower
from rml.ops.shapes import check_shapes
from rml.ops.similarity import alike, wide

BISECTIONS = 200


@full_precision
def deep_linear_grams(
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    widths: Float[Array, " depth"],
) -> Float[Array, "depth n n"]:
    """Computes the Gram matrices that maximise a linear machine's objective without noise.

    The objective is log N(Y; 0, G_L) - Σ_l ν_l KL(N(0, G_l) || N(0, G_{l-1})). In a basis A with
    G_0 = A Aᵀ and Y Yᵀ / c = A diag(d) Aᵀ it falls into scalar problems. Their stationarity,
    ν_l (r_l - 1) = ν_{l+1} (r_{l+1} - 1) for the ratios r_l = g_l / g_{l-1} and ν_{L+1} = c, says
    that r_l = 1 + s / ν_l, where s makes the product of all ratios d. With equal widths ν_l = c
    this is the paper's interpolation G_l = G_0 (G_0⁻¹ Y Yᵀ / c)^(l / (L + 1)); the extension to
    unequal widths is derived here.

    Args:
      g: Gram matrix of the inputs, positive definite.
      y: Outputs; their number c is the width of the output layer.
      widths: ν of each hidden layer. Where outputs have a rank below n, as where c < n, all must
        be greater than c, or the optimum is singular.

    Returns:
      One matrix a layer, outermost last; inside `jit` NaN where `g` is singular.

    Raises:
      UserError: If `g` is singular to rounding, or the widths make the optimum singular.
      ValueError: If shapes do not fit.

    Source: Yang et al., arXiv:2108.13097, the appendix on deep linear machines.
    """
    check_shapes(g=(g, "n n"), y=(y, "n c"), widths=(widths, "depth"))
    n, c = y.shape
    require_positive_definite("the Gram matrix of the inputs", g)
    if not isinstance(widths, jax.core.Tracer):
        if bool(jnp.any(widths <= 0)):
            raise UserError(f"widths must be positive, got {widths}")
        if c < n and bool(jnp.any(widths <= c)):
            raise UserError(
                f"with {c} outputs for {n} points, fewer than points, every width must be greater "
                f"than {c}, got {widths}: the optimal Gram matrices would be singular"
            )
        if bool(jnp.any(widths <= c)) and _dependent(y):
            raise UserError(
                f"with outputs of a rank below {n}, the number of points, every width must be "
                f"greater than {c}, got {widths}: the optimal Gram matrices would be singular"
            )
    g, y, widths = alike(g, y, widths)
    factor = exact_factor(g)
    # By chance of rounding a singular matrix may have a factor too.
    least = jnp.min(jnp.diagonal(factor)) ** 2
    singular = ~(least > n * jnp.finfo(g.dtype).eps * jnp.max(jnp.diagonal(g)))
    if not isinstance(singular, jax.core.Tracer) and bool(singular):
        values = jnp.linalg.eigvalsh(g)
        raise UserError(
            f"the Gram matrix of the inputs ({n} x {n}) is singular: eigenvalues from "
            f"{values[0]:.3g} to {values[-1]:.3g}; expected linearly independent inputs, or a "
            "multiple of the identity added"
        )
    factor = jnp.where(singular, jnp.nan, factor)
    whitened = solve_lower(factor, y)
    d, basis = jnp.linalg.eigh(whitened @ whitened.T / c)
    d = jnp.maximum(d, 0)
    scales = _scales(d, jnp.append(widths, jnp.asarray(c, widths.dtype)))
    root = factor @ basis
    return jnp.einsum("ik,kl,jk->lij", root, scales, root)


def _dependent(y: Array) -> bool:
    """Whether rows of finite outputs are known to be linearly dependent."""
    if isinstance(y, jax.core.Tracer):
        return False
    values = np.asarray(wide(y)[0])
    return bool(np.isfinite(values).all()) and int(np.linalg.matrix_rank(values)) < len(values)


@jax.jit
def _scales(d: Float[Array, " n"], widths: Float[Array, " layers"]) -> Float[Array, "n hidden"]:
    """By value of d, the products of the ratios r_1 to r_l for each hidden layer l."""

    def ratios(shift: Array) -> Array:
        return jnp.maximum(1 + shift[:, None] / widths, 0)

    # The product grows with the shift: from 0 at -min ν, to at least d at max ν max(d - 1, 0).
    low = jnp.full_like(d, -jnp.min(widths))
    high = jnp.max(widths) * jnp.maximum(d - 1, 0)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        less = jnp.prod(ratios(middle), axis=1) < d
        return jnp.where(less, middle, low), jnp.where(less, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    return jnp.cumprod(ratios((low + high) / 2)[:, :-1], axis=1)
