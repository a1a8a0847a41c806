"""The kernels to which features of random-feature attention converge with the number of heads."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from rml.attention.random_feature_attention import concatenated
from rml.ops import arc_cosine, full_precision, wide
from rml.ops.shapes import check_above_0, check_shapes

_POINTS = 24  # of Gauss and Legendre: float32 rounding is reached, see the tests


def rectified_product(cosine: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Computes the mean of relu(u) relu(v) for standard normals u, v of correlation `cosine`."""
    (cosine,) = wide(cosine)
    return arc_cosine(cosine, jnp.ones_like(cosine), jnp.ones_like(cosine)) / 2


def biased_rectified_product(
    mean: Float[Array, "*#s"], other: Float[Array, "*#s"], cosine: Float[Array, "*#s"]
) -> Float[Array, "*s"]:
    """Averages relu(mean + u) relu(other + v) over standard normals u, v of correlation `cosine`.

    Closed but for the integral that every bivariate normal probability needs, done by quadrature
    over the angle whose sine is the correlation. By Price's theorem the derivative with respect to
    the correlation is P(mean + u > 0, other + v > 0), whose own derivative is the density at the
    means: twice integrated from correlation zero, where the two factors are independent, this is

        E relu E relu + ρ P P + ∫_0^ρ (ρ - r) density(r) dr.
    """
    mean, other, cosine = wide(mean, other, cosine)
    return _biased_product(*jnp.broadcast_arrays(mean, other, cosine))


def _density(x: Array) -> Array:
    return jnp.exp(-x * x / 2) / jnp.sqrt(2 * jnp.pi)


def _masses(mean: Array, other: Array, rho: Array) -> Iterator[tuple[Array, Array]]:
    """Nodes r of the quadrature from 0 to ρ, and the density at the means there times dr."""
    half = jnp.arcsin(rho) / 2
    difference, product = mean - other, mean * other
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        sine = jnp.sin(half * (1 + node))
        # m² + o² - 2 m o s = (m - o)² + 2 m o (1 - s), which loses no digits where s is near 1.
        exponent = (difference**2 / (1 - sine) + 2 * product) / (2 * (1 + sine))
        yield sine, half * weight * jnp.exp(-exponent) / (2 * jnp.pi)


# The slope of the quadrature's own bound is infinite at a correlation of ±1: both functions have
# theirs in closed form, and so second derivatives are finite there.


@jax.custom_jvp
def _both(mean: Array, other: Array, rho: Array) -> Array:
    """P(mean + u > 0, other + v > 0)."""
    return ndtr(mean) * ndtr(other) + sum(mass for _, mass in _masses(mean, other, rho))


def _conditional(mean: Array, other: Array, rho: Array) -> Array:
    """The density of u at -mean times P(other + v > 0 | u = -mean)."""
    inside, root = _root(rho)
    beyond = other - rho * mean
    return _density(mean) * jnp.where(inside, ndtr(beyond / root), jnp.heaviside(beyond, 0.5))


def _root(rho: Array) -> tuple[Array, Array]:
    """Whether |ρ| < 1, and √(1 - ρ²) there, else 1."""
    inside = jnp.abs(rho) < 1
    return inside, jnp.sqrt(jnp.where(inside, (1 - rho) * (1 + rho), 1))


@_both.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (mean, other, rho), (by_mean, by_other, by_rho) = primals, tangents
    inside, root = _root(rho)
    exponent = ((mean - other) ** 2 / 2 + mean * other * (1 - rho)) / root**2
    density = jnp.where(inside, jnp.exp(-exponent) / (2 * jnp.pi * root), 0)
    slope = by_mean * _conditional(mean, other, rho) + by_other * _conditional(other, mean, rho)
    return _both(mean, other, rho), slope + by_rho * density


@jax.custom_jvp
def _biased_product(mean: Array, other: Array, cosine: Array) -> Array:
    def alone(x: Array) -> Array:
        return x * ndtr(x) + _density(x)

    rho = jnp.clip(cosine, -1.0, 1.0)
    total = alone(mean) * alone(other) + rho * ndtr(mean) * ndtr(other)
    for sine, mass in _masses(mean, other, rho):
        total += mass * (rho - sine)
    return total


@_biased_product.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (mean, other, cosine), (by_mean, by_other, by_cosine) = primals, tangents
    rho = jnp.clip(cosine, -1.0, 1.0)  # which rounding takes beyond, where its slope is the end's
    both = _both(mean, other, rho)
    own, theirs = _conditional(mean, other, rho), _conditional(other, mean, rho)
    # The mean of v where both are positive is φ(o) P(u | v = -o) + ρ φ(m) P(v | u = -m).
    slope = by_mean * (other * both + theirs + rho * own)
    slope += by_other * (mean * both + own + rho * theirs)
    return _biased_product(mean, other, cosine), slope + by_cosine * both


@full_precision
def rfa_kernel(
    query: Float[Array, "m d"],
    keys: Float[Array, "m k d"],
    other_query: Float[Array, "n d"],
    other_keys: Float[Array, "n l d"],
    *,
    scale: float | Float[Array, ""] = 0.5,
    biased: bool = False,
) -> Float[Array, "m n"]:
    """Computes the kernel of random-feature attention with infinitely many heads.

    The mean over pairs of keys (xi, yj) of <xi, yj> E[relu(<W, x0 xiᵀ>) relu(<W, y0 yjᵀ>)], all
    with bias coordinates. Pairs are streamed: memory is that of the result.

    Args:
      query: Queries of the rows.
      keys: Keys of the rows.
      other_query: Queries of the columns.
      other_keys: Keys of the columns.
      scale: Standard deviation of the entries of the query-key matrices, above 0.
      biased: Whether the matrices are centred at the identity.

    Returns:
      Kernel between all rows and all columns.

    Raises:
      ValueError: Shapes do not fit, there is no key, or the scale is a number that is not above 0;
        arrays are not looked at.

    Source: expectation of `rfa_features` over heads; arc-cosine kernel of Cho and Saul 2009.
    """
    check_shapes(
        query=(query, "m d"), keys=(keys, "m s d"), other_query=(other_query, "p d"),
        other_keys=(other_keys, "p l d"),
    )  # fmt: skip
    check_above_0(scale=scale)
    check_above_0(keys=keys.shape[1], other_keys=other_keys.shape[1])
    query, keys, other_query, other_keys = wide(query, keys, other_query, other_keys)
    queries = 1 + query @ other_query.T
    norm, other_norm = _norm(query)[:, None], _norm(other_query)
    count, other_count = keys.shape[1], other_keys.shape[1]

    def pair(total: Array, index: Array) -> tuple[Array, None]:
        x, y = keys[:, index // other_count], other_keys[:, index % other_count]
        inner = 1 + x @ y.T
        sizes, other_sizes = scale * norm * _norm(x)[:, None], scale * other_norm * _norm(y)
        cosine = scale**2 * queries * inner / (sizes * other_sizes)
        if biased:
            mean, other = jnp.sum(query * x, -1)[:, None], jnp.sum(other_query * y, -1)
            value = biased_rectified_product(mean / sizes, other / other_sizes, cosine)
        else:
            value = rectified_product(cosine)
        return total + sizes * other_sizes * value * inner, None

    total = jax.lax.scan(
        jax.checkpoint(pair), jnp.zeros_like(queries), jnp.arange(count * other_count)
    )[0]
    return total / (count * other_count)


@full_precision
def rf_mlp_kernel(
    query: Float[Array, "m d"],
    keys: Float[Array, "m k d"],
    other_query: Float[Array, "n d"],
    other_keys: Float[Array, "n k d"],
) -> Float[Array, "m n"]:
    """Computes the kernel of the random-feature MLP with infinitely many neurons.

    The arc-cosine kernel of the concatenated inputs, scaled as `rf_mlp_weights`.

    Raises:
      ValueError: Shapes do not fit.

    Source: expectation of `rf_mlp_features` over neurons; Cho and Saul 2009.
    """
    check_shapes(
        query=(query, "m d"), keys=(keys, "m s d"), other_query=(other_query, "p d"),
        other_keys=(other_keys, "p s d"),
    )  # fmt: skip
    query, keys, other_query, other_keys = wide(query, keys, other_query, other_keys)
    x, y = concatenated(query, keys), concatenated(other_query, other_keys)
    sizes = jnp.linalg.norm(x, axis=-1)[:, None] * jnp.linalg.norm(y, axis=-1)
    return sizes * rectified_product(x @ y.T / sizes) / (keys.shape[1] + 2)


def _norm(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Norm with the bias coordinate."""
    return jnp.sqrt(1 + jnp.sum(x * x, axis=-1))
