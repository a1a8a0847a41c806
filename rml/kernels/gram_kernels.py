"""Kernels that read Gram matrices, as composable pure functions.

A kernel here is a function `k(c, v, w)` of the inner product c of two points and their squared
norms v and w, elementwise with broadcasting, so that one definition gives a Gram matrix, a block of
one, or a diagonal. Half precision is promoted: angles and differences of near points need digits.
"""

import inspect
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.errors import UserError, unknown
from rml.ops.arc_cosine import arc_cosine, cosine, positive_root, ratio
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_between
from rml.ops.similarity import wide

Kernel = Callable[[Any, Any, Any], Any]


class Blocks(NamedTuple):
    """The part of a Gram matrix that inducing points (i) and other points (t) need.

    Attributes:
      ii: Inducing points with each other.
      ti: Other points with inducing points.
      t: Each other point with itself.
    """

    ii: Float[Array, "p p"]
    ti: Float[Array, "t p"]
    t: Float[Array, " t"]


def linear(c: Array, v: Array, w: Array) -> Array:
    """Returns the inner product itself."""
    return jnp.broadcast_arrays(*wide(c, v, w))[0]


def squared_distance(c: Array, v: Array, w: Array) -> Array:
    """Computes |x - y|² = v + w - 2c, never negative."""
    c, v, w = wide(c, v, w)
    square = v + w - 2 * c
    return jnp.where(square < 0, 0, square)  # by rounding, where the points are long and close


def _in_lengths(c: Array, v: Array, w: Array, length_scale: float | Array) -> Array:
    """Squared distances in units of the squared length scale."""
    check_above_0(length_scale=length_scale)
    return squared_distance(c, v, w) / jnp.square(length_scale)


def squared_exponential(
    c: Array, v: Array, w: Array, *, length_scale: float | Array = 1.0
) -> Array:
    """Computes exp(-|x - y|² / (2 length_scale²)).

    Raises:
      ValueError: If the length scale is a number that is not above 0.
    """
    return jnp.exp(-_in_lengths(c, v, w, length_scale) / 2)


def rational_quadratic(
    c: Array,
    v: Array,
    w: Array,
    *,
    length_scale: float | Array = 1.0,
    alpha: float | Array = 1.0,
) -> Array:
    """Computes (1 + |x - y|² / (2 alpha length_scale²))^-alpha: mixed squared exponentials.

    Raises:
      ValueError: If the length scale or alpha is a number that is not above 0.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, eq. 4.19.
    """
    check_above_0(alpha=alpha)
    share = _in_lengths(c, v, w, length_scale) / (2 * alpha)
    return jnp.exp(-alpha * jnp.log1p(share))


@jax.custom_jvp
def _matern12(t: Array) -> Array:
    return jnp.exp(-positive_root(t))


@_matern12.defjvp
def _(primals: Any, tangents: Any) -> Any:
    value, root = _matern12(*primals), positive_root(*primals)
    return value, -ratio(value, 2 * root) * tangents[0]  # 0 at the kink, as central differences


@jax.custom_jvp
def _matern32(t: Array) -> Array:
    root = positive_root(3 * t)
    return (1 + root) * jnp.exp(-root)


@_matern32.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _matern32(*primals), -3 / 2 * _matern12(3 * primals[0]) * tangents[0]


@jax.custom_jvp
def _matern52(t: Array) -> Array:
    root = positive_root(5 * t)
    return (1 + root + 5 / 3 * t) * jnp.exp(-root)


@_matern52.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _matern52(*primals), -5 / 6 * _matern32(5 / 3 * primals[0]) * tangents[0]


def matern12(c: Array, v: Array, w: Array, *, length_scale: float | Array = 1.0) -> Array:
    """Computes exp(-r), r = |x - y| / length_scale: the Matérn kernel of smoothness 1/2.

    Raises:
      ValueError: If the length scale is a number that is not above 0.
    """
    return _matern12(_in_lengths(c, v, w, length_scale))


def matern32(c: Array, v: Array, w: Array, *, length_scale: float | Array = 1.0) -> Array:
    """Computes (1 + √3 r) exp(-√3 r) with r = |x - y| / length_scale: smoothness 3/2.

    Raises:
      ValueError: If the length scale is a number that is not above 0.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, eq. 4.17.
    """
    return _matern32(_in_lengths(c, v, w, length_scale))


def matern52(c: Array, v: Array, w: Array, *, length_scale: float | Array = 1.0) -> Array:
    """Computes (1 + √5 r + 5 r² / 3) exp(-√5 r) with r = |x - y| / length_scale: smoothness 5/2.

    Raises:
      ValueError: If the length scale is a number that is not above 0.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, eq. 4.17.
    """
    return _matern52(_in_lengths(c, v, w, length_scale))


def relu(c: Array, v: Array, w: Array) -> Array:
    """Computes the arc-cosine kernel of order 1: twice ReLU's second moment; keeps diagonals.

    `rml.ops.arc_cosine` says what its derivatives are where points coincide or are zero.

    Source: Cho and Saul 2009, Kernel Methods for Deep Learning, k_1.
    """
    return arc_cosine(c, v, w)


def scaled(kernel: Kernel, *, weight: float | Array = 1.0, bias: float | Array = 0.0) -> Kernel:
    """Multiplies a kernel by `weight` and adds `bias`."""
    return lambda c, v, w: weight * kernel(c, v, w) + bias


def normalized(kernel: Kernel) -> Kernel:
    """Divides a kernel so that its diagonal is 1; a point of norm 0 stays at 0."""

    def apply(c: Array, v: Array, w: Array) -> Array:
        norms = (kernel(norm, norm, norm) for norm in (v, w))
        return cosine(*jnp.broadcast_arrays(kernel(c, v, w), *norms))

    return apply


def compose(*kernels: Kernel) -> Kernel:
    """Makes the kernel of features of features: the first is applied first.

    Raises:
      UserError: If there is no kernel.
    """
    if not kernels:
        raise UserError("compose takes at least one kernel, got none")

    def after(inner: Kernel, outer: Kernel) -> Kernel:
        return lambda c, v, w: outer(inner(c, v, w), inner(v, v, v), inner(w, w, w))

    return reduce(after, kernels)


def neural_tangent(kernel: Kernel, *, depth: int) -> Kernel:
    """Makes the neural tangent kernel, a kernel itself, of a network whose layers have `kernel`.

    With K the layers' kernels, K̇ = ∂K/∂c and Θ_0 = K_0 the inner product of the inputs,

        Θ_l = K_l + K̇(K_{l-1}) Θ_{l-1}.

    By Price's theorem K̇ is the mean of the product of the activation's derivatives. Weights are
    standard normal and layers scaled by the root of their width, as their kernel is.

    Args:
      kernel: Second moment of an activation's features, such as `relu`.
      depth: Number of hidden layers.

    Returns:
      The kernel.

    Raises:
      ValueError: If the depth is below 0.

    Source: Jacot, Gabriel and Hongler, Neural Tangent Kernel, arXiv:1806.07572.
    """
    check_between(0, depth=depth)

    def apply(c: Array, v: Array, w: Array) -> Array:
        c, v, w = jnp.broadcast_arrays(*wide(c, v, w))
        tangent = c
        for _ in range(depth):
            before = v, w
            c, slope = jax.jvp(lambda c, ends=before: kernel(c, *ends), (c,), (jnp.ones_like(c),))
            v, w = (kernel(norm, norm, norm) for norm in before)
            tangent = c + slope * tangent
        return tangent

    return apply


KERNELS: dict[str, Kernel] = {
    "linear": linear,
    "squared_exponential": squared_exponential,
    "matern12": matern12,
    "matern32": matern32,
    "matern52": matern52,
    "rational_quadratic": rational_quadratic,
    "relu": relu,
    "relu_tangent": neural_tangent(relu, depth=1),
    "linear_normalized": normalized(linear),
    "relu_normalized": normalized(relu),
}


def build(name: str, **options: Any) -> Kernel:
    """Builds a kernel by name; `options` are its keyword arguments.

    Raises:
      UserError: If there is no kernel of this name, or it has no such option.
    """
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    parameters = inspect.signature(KERNELS[name]).parameters.values()
    known = [own.name for own in parameters if own.kind is own.KEYWORD_ONLY]
    for option in options:
        if not known:
            raise UserError(f"kernel {name!r} has no options, got {option!r}")
        if option not in known:
            raise unknown(f"option of kernel {name!r}", option, known)
    return partial(KERNELS[name], **options) if options else KERNELS[name]


def gram(kernel: Kernel, g: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Computes the kernel's Gram matrix of points that have Gram matrix `g`."""
    v = jnp.diagonal(g)
    return kernel(g, v[:, None], v)


def gram_blocks(kernel: Kernel, g: Blocks) -> Blocks:
    """Computes the kernel's blocks of points that have blocks `g`."""
    return Blocks(
        gram(kernel, g.ii),
        kernel(g.ti, g.t[:, None], jnp.diagonal(g.ii)),
        kernel(g.t, g.t, g.t),
    )


@full_precision
def input_gram(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Computes X Xᵀ / d, the Gram matrix of the inputs, in float32 or wider.

    Raises:
      UserError: If the inputs have no coordinate.
    """
    if not x.shape[1]:
        raise UserError(f"inputs have shape {x.shape}, expected at least one coordinate")
    (x,) = wide(x)
    return x @ x.T / x.shape[1]


@full_precision
def input_blocks(inducing: Float[Array, "p d"], x: Float[Array, "t d"]) -> Blocks:
    """Computes the blocks of X Xᵀ / d for inducing inputs and other inputs.

    Raises:
      ValueError: If the inputs differ in length or have no coordinate.
    """
    d = x.shape[1]
    if inducing.shape[1] != d:
        raise ValueError(
            f"inducing inputs and inputs must have one length, got {inducing.shape} and {x.shape}"
        )
    inducing, x = wide(inducing, x)
    return Blocks(input_gram(inducing), x @ inducing.T / d, jnp.sum(x * x, axis=1) / d)


def normalize_blocks(g: Blocks, *, how: str) -> Blocks:
    """Normalises a layer's Gram matrix.

    Args:
      g: The blocks.
      how: "none"; "global", by the mean squared norm of the inducing points; "local", every point
        by its own norm.

    Returns:
      Blocks of a Gram matrix again: with "global" the inducing diagonal has mean 1, with "local"
      all diagonals are 1. Points of norm 0 stay there.

    Raises:
      UserError: If `how` is unknown.

    Source: Milsom, Anson and Aitchison, Convolutional Deep Kernel Machines, arXiv:2309.09814, as in
      the authors' code, without the learned scales. There other points have batch statistics of
      their own; here the inducing points' serve all, so that no prediction depends on its batch.
    """
    if how == "none":
        return g
    if how == "global":
        scale = jnp.mean(jnp.diagonal(g.ii))
        scale = jnp.where(scale > 0, scale, 1.0)
        return Blocks(g.ii / scale, g.ti / scale, g.t / scale)
    if how == "local":
        return gram_blocks(normalized(linear), g)
    raise unknown("normalisation", how, ("none", "global", "local"))
