"""Low-rank adapters of any module's parameters, applied from outside the module.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rml.errors import UserError
from rml.ops.trees import LowRank, is_stacked, is_vector, leaf_name, matrix_shape


def init_lora(key: Array, params: PyTree, *, rank: int, within: str = "blocks") -> PyTree:
    """Draws adapters that change nothing yet: ΔW = A B with Gaussian A and B = 0.

    Args:
      key: A typed key.
      params: Parameters of a model; of stacked layers each has an adapter of its own.
      rank: Rank of every adapter.
      within: Part of the dotted name of the leaves that are adapted, such as "blocks.attention";
        biases and other vectors among them are not.

    Returns:
      The tree with a `LowRank` in the place of every matrix that is adapted, and None elsewhere.
      A [..., m, rank] has variance 1 / m. How a kernel of more axes is a matrix says
      `rml.ops.trees.matrix_shape`.

    Raises:
      UserError: No matrix is adapted, or the rank is not one of a matrix.

    Source: section 4.1.
    """

    def of_leaf(path: Sequence[Any], leaf: Array) -> LowRank | None:
        name, lead = leaf_name(path), leaf.shape[:1] if is_stacked(path) else ()
        if within not in name or is_vector(path, leaf):
            return None
        m, n = matrix_shape(leaf.shape[len(lead) :])
        if not 1 <= rank <= min(m, n):
            raise UserError(
                f"rank is {rank}, expected 1 to {min(m, n)}: leaf {name!r} is a matrix [{m}, {n}]"
            )
        keys.append(jax.random.fold_in(key, len(keys)))
        left = jax.random.normal(keys[-1], (*lead, m, rank), leaf.dtype) * m**-0.5
        return LowRank(left, jnp.zeros((*lead, rank, n), leaf.dtype))

    keys: list[Array] = []
    found = jax.tree_util.tree_map_with_path(of_leaf, params)
    if not keys:
        raise UserError(f"within is {within!r}, expected a part of the name of some matrix")
    return found


def apply_lora(params: PyTree, lora: PyTree, *, scale: float = 1.0) -> PyTree:
    """Computes W + scale · A B for every matrix that has an adapter.

    Args:
      params: Parameters of the model.
      lora: Adapters of `init_lora`, perhaps trained.
      scale: The paper's α / r.

    Returns:
      Parameters for the module.
    """

    def of_leaf(adapter: LowRank | None, leaf: Array) -> Array:
        if adapter is None:
            return leaf
        change = (adapter.left @ adapter.right).reshape(leaf.shape)
        return leaf + (scale * change).astype(leaf.dtype)

    return jax.tree.map(
        of_leaf, lora, params, is_leaf=lambda part: part is None or isinstance(part, LowRank)
    )
