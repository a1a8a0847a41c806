"""TIES merging: trim, elect a sign, average what agrees."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from rml.merging.averages import of_floats
from rml.ops import trees
from rml.ops.shapes import check_between, check_finite

DISJOINT = ("mean", "sum")
DIGIT = 1 << 15
"""Base of two digits, of which int32 holds sums where a count of entries is beyond it."""


@of_floats
def ties(
    base: PyTree,
    experts: PyTree,
    *,
    keep: float = 0.2,
    scale: ArrayLike = 1.0,
    disjoint: str = "mean",
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
      disjoint: What an entry is of those that have its sign: their "mean", or their "sum", which
        public codes offer and the paper does not.
      least: Least magnitude that is kept of each vector, in the place of `keep`: that of a whole
        checkpoint of which these are some leaves.

    Returns:
      Parameters of one model.

    Raises:
      ValueError: `keep` is not in (0, 1], `disjoint` is neither, or `scale` is not finite.
      UserError: Experts are not stacked, see `rml.ops.trees.check_stacked`, or as
        `check_integers`.

    Source: Yadav et al., TIES-Merging, arXiv:2306.01708, Algorithm 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, expected a share in (0, 1]")
    if disjoint not in DISJOINT:
        raise ValueError(f"disjoint is {disjoint!r}, expected one of: {', '.join(DISJOINT)}")
    check_finite(scale=scale)
    trees.check_stacked(base, "experts", experts)
    vectors = trees.task_vectors(base, experts)
    vectors = trim(vectors, keep=keep) if least is None else trim_below(vectors, least)

    def of_leaf(start: Array, own: Array) -> Array:
        agrees = (own * trees.total(own)) > 0
        merged = trees.total(jnp.where(agrees, own, 0))
        if disjoint == "mean":
            merged = merged / jnp.maximum(trees.total(agrees.astype(own.dtype)), 1)
        return (trees.wide(start) + scale * merged).astype(start.dtype)

    return jax.tree.map(of_leaf, base, vectors)


def trim(vectors: PyTree, *, keep: float) -> PyTree:
    """Sets all but the largest entries of each vector to zero; entries equal to the least stay.

    Args:
      vectors: Task vectors, stacked on a leading axis.
      keep: Share of a vector's entries that are kept, over all leaves together, at least one.

    Returns:
      Vectors of the same shapes.

    Raises:
      ValueError: `keep` is not between 0 and 1.
    """
    check_between(0, 1, keep=keep)
    leaves = jax.tree.leaves(vectors)
    kept = max(1, round(keep * sum(own.size // own.shape[0] for own in leaves)))
    return trim_below(vectors, _magnitude_at(leaves, kept))


def _magnitude_at(leaves: Sequence[Array], place: int) -> Float[Array, " n"]:
    """The magnitude at a place, from 1 at the largest, among all entries of each vector.

    Magnitudes are in the order of their bits as whole numbers, of which one bit after the other is
    found by counting; XLA's CPU backend takes twenty times as long to sort. A large leaf is counted
    in parts of DIGIT² entries, of which int32 holds the number.
    """
    wide = jnp.result_type(*leaves)
    width = jnp.finfo(wide).bits
    whole = jnp.dtype(f"uint{width}")
    rows = [
        jax.lax.bitcast_convert_type(jnp.abs(own.astype(wide)), whole).reshape(own.shape[0], -1)
        for own in leaves
    ]
    parts = [
        own[:, start : start + DIGIT**2]
        for own in rows for start in range(0, own.shape[1], DIGIT**2)
    ]  # fmt: skip

    def add_bit(at: Array, found: Array) -> Array:
        tried = found | (jnp.ones((), whole) << (width - 2 - at).astype(whole))
        counts = jnp.stack([jnp.sum(own >= tried[:, None], axis=1) for own in parts])
        return jnp.where(_reaches(counts, place), tried, found)

    start = jnp.zeros(leaves[0].shape[0], whole)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, width - 1, add_bit, start), wide)


def _reaches(counts: Int[Array, "parts n"], place: int) -> Bool[Array, " n"]:
    """Whether counts of parts sum to a place at least, both perhaps beyond int32."""
    low = jnp.sum(counts % DIGIT, axis=0)
    high = jnp.sum(counts // DIGIT, axis=0) + low // DIGIT
    wanted, rest = divmod(place, DIGIT)
    return (high > wanted) | ((high == wanted) & (low % DIGIT >= rest))


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
