"""Merging by averages and sums: plain, weighted (isotropic), and task arithmetic."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from rml.errors import UserError
from rml.ops import trees
from rml.ops.shapes import check_finite
from rml.ops.trees import is_floating

Weights = Sequence[float | int] | ArrayLike
"""A weight for each expert."""
SHOWN = 20
"""Most weights whose values a message shows."""
Merging = TypeVar("Merging", bound=Callable[..., PyTree])


def of_floats(method: Merging) -> Merging:
    """Lets a method merge floating-point leaves alone; others stay what all experts have.

    Args:
      method: `method(base, experts, **options) -> params`, whose errors stay.

    Returns:
      The method, which also raises the errors of `check_integers`.
    """

    @functools.wraps(method)
    def merged(base: PyTree, experts: PyTree, **options: Any) -> PyTree:
        if all(map(is_floating, jax.tree.leaves(base))):
            return method(base, experts, **options)
        trees.check_stacked(base, "experts", experts)
        check_integers(base, experts)
        start, own = (
            jax.tree.map(lambda leaf, x: x if is_floating(leaf) else None, base, tree)
            for tree in (base, experts)
        )
        return jax.tree.map(
            lambda leaf, own, x: own[0].astype(leaf.dtype) if x is None else x,
            base, experts, method(start, own, **options),
        )  # fmt: skip

    return cast(Merging, merged)


def check_integers(base: PyTree, experts: PyTree) -> None:
    """Raises `UserError` for a leaf of integers or truth values in which experts differ.

    It does as well where no leaf is floating-point. Values of traced experts are not looked at.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters of n experts, stacked on a leading axis, of the base's leaves.
    """
    leaves = jax.tree_util.tree_leaves_with_path(base)
    if not any(is_floating(leaf) for _, leaf in leaves):
        raise UserError("base has no floating-point leaf, expected at least one to merge")
    for (path, leaf), own in zip(leaves, jax.tree.leaves(experts), strict=True):
        if is_floating(leaf) or isinstance(own, jax.core.Tracer):
            continue
        values = np.asarray(own).reshape(len(own), -1)
        for i, j in np.argwhere(values != values[:1])[:1]:
            raise UserError(
                f"leaf {trees.leaf_name(path)!r} is of {leaf.dtype}, which has no average, and "
                f"holds {values[i, j]} in experts[{i}] and {values[0, j]} in experts[0], expected "
                "equal values"
            )


def average(base: PyTree, experts: PyTree) -> PyTree:
    """Computes the mean of the experts' parameters, (1/n) Σ_i θ_i.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters of n experts, stacked on a leading axis.

    Returns:
      Parameters of one model.

    Raises:
      UserError: Experts are not stacked, see `rml.ops.trees.check_stacked`, or as
        `check_integers`.

    Source: Wortsman et al., Model soups, arXiv:2203.05482 (the uniform soup).
    """
    count = trees.check_stacked(base, "experts", experts)
    return weighted_average(base, experts, weights=jnp.full(count, 1 / count))


@of_floats
def weighted_average(base: PyTree, experts: PyTree, *, weights: Weights) -> PyTree:
    """Computes Σ_i λ_i θ_i / Σ_i λ_i: Fisher merging whose Fishers are all one.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters of n experts, stacked on a leading axis.
      weights: Weights λ of at least 0, of which one is above 0.

    Returns:
      Parameters of one model.

    Raises:
      UserError: As `check_weights` or `check_integers`, or experts are not stacked.

    Source: Matena and Raffel, arXiv:2111.09832, Section 2 ("isotropic merging").
    """
    weights = array_of_weights(weights, trees.check_stacked(base, "experts", experts))
    share = weights / jnp.sum(weights)

    def of_leaf(start: Array, own: Array) -> Array:
        return jnp.tensordot(share, trees.wide(own), axes=1).astype(start.dtype)

    return jax.tree.map(of_leaf, base, experts)


@of_floats
def task_arithmetic(base: PyTree, experts: PyTree, *, scale: ArrayLike = 0.3) -> PyTree:
    """Computes θ_0 + s Σ_i (θ_i - θ_0); with s = 1/n it is the average.

    Args:
      base: Parameters θ_0 of the common base.
      experts: Parameters of n experts, stacked on a leading axis.
      scale: Factor s of the sum of task vectors.

    Returns:
      Parameters of one model.

    Raises:
      ValueError: `scale` is not finite.
      UserError: Experts are not stacked, or as `check_integers`.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089.
    """
    check_finite(scale=scale)
    count = trees.check_stacked(base, "experts", experts)
    vectors = trees.task_vectors(base, experts)
    return trees.combine(base, vectors, jnp.broadcast_to(jnp.asarray(scale), (count,)))


def array_of_weights(weights: Weights, count: int) -> Array:
    """Makes an array of weights that `check_weights` takes, whose errors it raises.

    It is that of `scaled_weights` unless they are traced.
    """
    if isinstance(weights, jax.core.Tracer):
        check_weights(weights, count)
        return jnp.asarray(weights, float)
    return jnp.asarray(scaled_weights(weights, count), float)


def scaled_weights(weights: Weights, count: int) -> np.ndarray:
    """Scales weights, as `check_weights` takes them, in float64 so that the largest is near 1.

    A normalised average does not see it, and float32 holds the sum. The factor is a power of two,
    which rounds nothing.
    """
    check_weights(weights, count)
    values = np.asarray(weights, np.float64)
    return np.ldexp(values, -np.frexp(values.max())[1])


def check_weights(weights: Weights, count: int) -> None:
    """Raises `UserError` for weights that are not one of at least 0 for each of `count` experts.

    One must be above 0, none infinite. Values of traced weights are not looked at.
    """
    shape = np.shape(weights)
    if shape != (count,):
        few = not isinstance(weights, jax.core.Tracer) and math.prod(shape) <= SHOWN
        shown = np.asarray(weights).tolist() if few else f"an array of shape {list(shape)}"
        raise UserError(f"weights is {shown}, expected one for each of {count} experts")
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights)
    if not ((values >= 0) & (values < np.inf)).all() or not values.any():
        raise UserError(
            f"weights is {values.tolist()}, expected numbers of at least 0, of which one is above "
            "0 and none infinite"
        )
