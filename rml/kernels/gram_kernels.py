"""Kernels that read Gram matrices, as composable pure functions.

A kernel here is a function `k(c, v, w)` of the inner product c of two points and their squared
norms v and w, elementwise with broadcasting, so that one definition gives a Gram matrix, a block of
one, or a diagonal.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.errors import unknown

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
    """The inner product itself."""
    return jnp.broadcast_arrays(c, v, w)[0]


def squared_exponential(
    c: Array, v: Array, w: Array, *, length_scale: float | Array = 1.0
) -> Array:
    """exp(-|x - y|² / (2 length_scale²)), with |x - y|² = v + w - 2c."""
    square = v + w - 2 * c
    square = jnp.where(square < 0, 0, square)  # by rounding, where the points are long and close
    return jnp.exp(-square / (2 * jnp.square(length_scale)))


@jax.custom_jvp
def _arc_cosine(cosine: Array) -> Array:
    angle = jnp.arccos(cosine)
    return (jnp.sin(angle) + (jnp.pi - angle) * cosine) / jnp.pi


@_arc_cosine.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (cosine,), (tangent,) = primals, tangents
    # In closed form: the derivatives of the parts are infinite where two points coincide.
    return _arc_cosine(cosine), (1 - jnp.arccos(cosine) / jnp.pi) * tangent


def _root(v: Array) -> Array:
    """Square root, with a gradient of 0 at 0. Of each norm alone: their product may overflow."""
    return jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)


def relu(c: Array, v: Array, w: Array) -> Array:
    """Arc-cosine kernel of order 1: twice the second moment of ReLU features; keeps diagonals.

    Source: Cho and Saul 2009, Kernel Methods for Deep Learning, k_1.
    """
    norm = _root(v) * _root(w)
    cosine = jnp.clip(c / jnp.where(norm > 0, norm, 1.0), -1.0, 1.0)
    return norm * _arc_cosine(cosine)


def scaled(kernel: Kernel, *, weight: float | Array = 1.0, bias: float | Array = 0.0) -> Kernel:
    """`weight` times the kernel plus `bias`."""
    return lambda c, v, w: weight * kernel(c, v, w) + bias


def normalized(kernel: Kernel) -> Kernel:
    """The kernel divided so that its diagonal is 1; a point of norm 0 stays at 0."""

    def apply(c: Array, v: Array, w: Array) -> Array:
        norm = _root(kernel(v, v, v)) * _root(kernel(w, w, w))
        return jnp.where(norm > 0, kernel(c, v, w) / jnp.where(norm > 0, norm, 1.0), 0.0)

    return apply


def compose(*kernels: Kernel) -> Kernel:
    """The kernel of features of features: the first is applied first."""

    def after(inner: Kernel, outer: Kernel) -> Kernel:
        return lambda c, v, w: outer(inner(c, v, w), inner(v, v, v), inner(w, w, w))

    return reduce(after, kernels)


KERNELS: dict[str, Kernel] = {
    "linear": linear,
    "squared_exponential": squared_exponential,
    "relu": relu,
    "linear_normalized": normalized(linear),
    "relu_normalized": normalized(relu),
}


def build(name: str, **options: Any) -> Kernel:
    """A kernel by name; `options` are its keyword arguments.

    Raises:
      UserError: If there is no kernel of this name.
    """
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    return partial(KERNELS[name], **options) if options else KERNELS[name]


def gram(kernel: Kernel, g: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The kernel's Gram matrix of points that have Gram matrix `g`."""
    v = jnp.diagonal(g)
    return kernel(g, v[:, None], v)


def gram_blocks(kernel: Kernel, g: Blocks) -> Blocks:
    """The kernel's blocks of points that have blocks `g`."""
    return Blocks(
        gram(kernel, g.ii),
        kernel(g.ti, g.t[:, None], jnp.diagonal(g.ii)),
        kernel(g.t, g.t, g.t),
    )


def input_gram(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """X Xᵀ / d, the Gram matrix of the inputs."""
    return x @ x.T / x.shape[1]


def input_blocks(inducing: Float[Array, "p d"], x: Float[Array, "t d"]) -> Blocks:
    """The blocks of X Xᵀ / d for inducing inputs and other inputs.

    Raises:
      ValueError: If the inputs differ in length.
    """
    d = x.shape[1]
    if inducing.shape[1] != d:
        raise ValueError(
            f"inducing inputs and inputs must have one length, got {inducing.shape} and {x.shape}"
        )
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
