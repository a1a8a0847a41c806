"""Merging by averages and sums: plain, weighted (isotropic), and task arithmetic."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from rml.errors import UserError
from rml.ops import trees

Weights = Sequence[float | int] | ArrayLike
"""A weight for each expert."""


def average(base: PyTree, experts: PyTree) -> PyTree:
    """Computes the mean of the experts' parameters, (1/n) Σ_i θ_i.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters of n experts, stacked on a leading axis.

    Returns:
      Parameters of one model.

    Raises:
      UserError: Experts are not stacked, see `rml.ops.trees.check_stacked`.

    Source: Wortsman et al., Model soups, arXiv:2203.05482 (the uniform soup).
    """
    count = trees.check_stacked(base, "experts", experts)
    return weighted_average(base, experts, weights=jnp.full(count, 1 / count))


def weighted_average(base: PyTree, experts: PyTree, *, weights: Weights) -> PyTree:
    """Computes Σ_i λ_i θ_i / Σ_i λ_i: Fisher merging whose Fishers are all one.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters of n experts, stacked on a leading axis.
      weights: Weights λ of at least 0, of which one is above 0.

    Returns:
      Parameters of one model.

    Raises:
      UserError: As `check_weights`, or experts are not stacked.

    Source: Matena and Raffel, arXiv:2111.09832, Section 2 ("isotropic merging").
    """
    weights = array_of_weights(weights, trees.check_stacked(base, "experts", experts))
    share = weights / jnp.sum(weights)

    def of_leaf(start: Array, own: Array) -> Array:
        return jnp.tensordot(share, trees.wide(own), axes=1).astype(start.dtype)

    return jax.tree.map(of_leaf, base, experts)


def task_arithmetic(base: PyTree, experts: PyTree, *, scale: ArrayLike = 0.3) -> PyTree:
    """Computes θ_0 + s Σ_i (θ_i - θ_0); with s = 1/n it is the average.

    Args:
      base: Parameters θ_0 of the common base.
      experts: Parameters of n experts, stacked on a leading axis.
      scale: Factor s of the sum of task vectors.

    Returns:
      Parameters of one model.

    Raises:
      UserError: Experts are not stacked.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089.
    """
    count = trees.check_stacked(base, "experts", experts)
    vectors = trees.task_vectors(base, experts)
    return trees.combine(base, vectors, jnp.broadcast_to(jnp.asarray(scale), (count,)))


def array_of_weights(weights: Weights, count: int) -> Array:
    """Makes an array of weights that `check_weights` takes, whose errors it raises."""
    check_weights(weights, count)
    return jnp.asarray(weights, float)


def check_weights(weights: Weights | None, count: int) -> None:
    """Raises `UserError` for weights that are not one of at least 0 for each of `count` experts.

    One must be above 0. Values of traced weights are not looked at.
    """
    if weights is None:
        return
    shape = np.shape(weights)
    if shape != (count,):
        raise UserError(f"weights is {list(shape)}, expected [{count}]: one for each expert")
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights)
    if not (values >= 0).all() or not values.any():
        raise UserError(
            f"weights is {values.tolist()}, expected numbers of at least 0, of which one is above 0"
        )
