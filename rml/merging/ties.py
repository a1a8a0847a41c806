"""TIES merging: trim, elect a sign, average what agrees."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rml.ops import trees


def ties(
    base: PyTree,
    experts: PyTree,
    *,
    keep: float = 0.2,
    scale: ArrayLike = 1.0,
    least: Float[Array, " n"] | None = None,
) -> PyTree:
    """Merges the entries of task vectors that are large and agree in sign.

    Of each vector the share `keep` of largest magnitude stays. The sign of an entry is that of the
    sum over vectors, and the entry the mean of those that have this sign; an entry whose sum is
    zero stays the base's.

    Args:
      base: Parameters θ_0 of the common base.
      experts: Parameters of n experts, stacked on a leading axis.
      keep: Share of a vector's entries that are kept, over all leaves together.
      scale: Factor of the merged vector.
      least: Least magnitude that is kept of each vector, in the place of `keep`: that of a whole
        checkpoint of which these are some leaves.

    Returns:
      Parameters of one model.

    Raises:
      ValueError: `keep` is not in (0, 1].

    Source: Yadav et al., TIES-Merging, arXiv:2306.01708, Algorithm 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, expected a share in (0, 1]")
    vectors = trees.task_vectors(base, experts)
    vectors = trim(vectors, keep=keep) if least is None else trim_below(vectors, least)

    def of_leaf(start: Array, own: Array) -> Array:
        agrees = (own * trees.total(own)) > 0
        number = trees.total(agrees.astype(own.dtype))
        mean = trees.total(jnp.where(agrees, own, 0)) / jnp.maximum(number, 1)
        return (trees.wide(start) + scale * mean).astype(start.dtype)

    return jax.tree.map(of_leaf, base, vectors)


def trim(vectors: PyTree, *, keep: float) -> PyTree:
    """Sets all but the largest entries of each vector to zero; entries equal to the least stay.

    Args:
      vectors: Task vectors, stacked on a leading axis.
      keep: Share of a vector's entries that are kept, over all leaves together, at least one.

    Returns:
      Vectors of the same shapes.
    """
    leaves = jax.tree.leaves(vectors)
    size = jnp.concatenate([jnp.abs(own).reshape(own.shape[0], -1) for own in leaves], axis=1)
    kept = max(1, round(keep * size.shape[1]))
    return trim_below(vectors, jnp.sort(size, axis=1)[:, size.shape[1] - kept])


def trim_below(vectors: PyTree, least: Float[Array, " n"]) -> PyTree:
    """Sets the entries of each vector to zero that are smaller than its least magnitude.

    Args:
      vectors: Task vectors, stacked on a leading axis.
      least: Magnitudes, one for each vector.

    Returns:
      Vectors of the same shapes.
    """

    def of_leaf(own: Array) -> Array:
        return jnp.where(jnp.abs(own) >= least.reshape(-1, *(1,) * (own.ndim - 1)), own, 0)

    return jax.tree.map(of_leaf, vectors)
