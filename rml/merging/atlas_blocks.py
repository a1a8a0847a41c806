"""aTLAS with the blocks chosen before training: those left out take no memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from rml.errors import UserError
from rml.merging.atlas import clipped_adamw
from rml.ops import trees
from rml.training import Descent, check_batches, descend


class Blocks(NamedTuple):
    """The blocks of one leaf that are kept, of all task vectors.

    Attributes:
      values: The m blocks.
      vector: The task vector that each is of.
      layer: The layer that each is of; 0 where the leaf holds one.
    """

    values: Float[Array, "m ..."]
    vector: Int[Array, " m"]
    layer: Int[Array, " m"]


def take_blocks(
    base: PyTree, vectors: PyTree, kept: PyTree, *, farthest: float = 1.0
) -> tuple[PyTree, PyTree]:
    """Takes chosen blocks out of task vectors, which may be forgotten then.

    Args:
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis of n.
      kept: Which blocks are taken, as `select_blocks` chooses them; not traced, since shapes
        depend on it.
      farthest: Largest norm of a vector, as a share of the base's norm; see
        `rml.ops.trees.check_values`.

    Returns:
      `Blocks` in the place of each leaf, and a coefficient of 0 for each block, leaves [m].

    Raises:
      UserError: A leaf of the vectors is missing, is too many, or has another shape; base or
        vectors hold NaN or infinite values; a vector is too long to be of this base; or a leaf of
        `kept` is missing, is too many, or has another shape than the vectors' blocks.
    """
    count = trees.check_vectors(base, vectors, farthest=farthest)
    trees.check_trees(trees.block_coefficients(base, count), {"kept": kept})

    def of_leaf(own: Array, mask: Any) -> Blocks:
        vector, *layer = np.nonzero(np.asarray(mask))
        layers = layer[0] if layer else np.zeros_like(vector)
        return Blocks(own[(vector, *layer)], jnp.asarray(vector), jnp.asarray(layers))

    blocks = jax.tree.map(of_leaf, vectors, kept)
    zeros = jax.tree.map(
        lambda start, own: jnp.zeros(len(own.vector), trees.wide(start).dtype), base, blocks
    )
    return blocks, zeros


def compose_blocks(base: PyTree, blocks: PyTree, coefficients: PyTree) -> PyTree:
    """Computes θ_0 + Σ λ_b τ_b over the blocks that are kept.

    Args:
      base: Parameters θ_0.
      blocks: Blocks as `take_blocks` takes them.
      coefficients: A number for each, leaves [m].

    Returns:
      Parameters of the base's types, those of `compose` with all other coefficients 0.

    Raises:
      UserError: Coefficients of a leaf are not one for each of its blocks.
    """

    def of_leaf(path: Any, start: Array, each: Array, own: Blocks) -> Array:
        if np.shape(each) != own.vector.shape:
            raise UserError(
                f"leaf {trees.leaf_name(path)!r} of coefficients is {list(np.shape(each))}, "
                f"expected {list(own.vector.shape)}: one a block"
            )
        moves = each.reshape(each.shape + (1,) * (own.values.ndim - 1)) * own.values
        whole = trees.wide(start)
        moved = whole.at[own.layer].add(moves) if trees.is_stacked(path) else whole + moves.sum(0)
        return moved.astype(start.dtype)

    return jax.tree_util.tree_map_with_path(of_leaf, base, coefficients, blocks)


def learn_blocks(
    objective: Callable[[PyTree, Any], Float[Array, ""]],
    base: PyTree,
    blocks: PyTree,
    coefficients: PyTree,
    batches: PyTree,
    *,
    learning_rate: ArrayLike | optax.Schedule = 1e-3,
    weight_decay: ArrayLike = 0.1,
    clip: float = 1.0,
) -> Descent:
    """Learns the coefficients of blocks that are kept, as `learn_scaling` with `kept` does.

    Memory is that of the blocks beside the model, whatever the number of task vectors.

    Args:
      objective: `objective(params, batch) -> loss`.
      base: Parameters θ_0.
      blocks: Blocks as `take_blocks` takes them.
      coefficients: What coefficients start from, such as its zeros.
      batches: Batches of all steps, stacked on a leading axis; what is reported must not be in it.
      learning_rate: AdamW's step size, or a schedule.
      weight_decay: AdamW's decay, times the step size.
      clip: Largest norm of the gradient.

    Returns:
      Coefficients as `compose_blocks` takes them, and the course of the objective.

    Raises:
      UserError: There is no step or no example, or coefficients are not one for each block.
      ValueError: `clip` is not above 0.

    Source: Zhang et al., arXiv:2407.02880; optimiser, decay and clipping are its public code's.
    """
    check_batches("batches", batches)
    return descend(
        lambda own, batch: objective(compose_blocks(base, blocks, own), batch),
        coefficients, batches, optimizer=clipped_adamw(learning_rate, weight_decay, clip),
    )  # fmt: skip
