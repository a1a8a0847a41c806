"""Maps of a transformer's depth: every layer becomes a weighted sum of layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError
from rml.models.layouts import blocks_of, transformers
from rml.models.width import namespace
from rml.ops.trees import STACKED, check_leaf, leaf_name


def map_depth(params: PyTree, matrix: Float[Array | np.ndarray, "new old"]) -> dict[str, Any]:
    """Maps the depth of the transformers in a tree: layer i becomes Σ_j M_ij layer j.

    Args:
      params: Parameters with scanned blocks ("blocks", one product a leaf) or with numbered ones.
      matrix: M, a row for each layer afterwards and a column for each before.

    Returns:
      Parameters of the same structure, in which blocks alone have changed.

    Raises:
      UserError: There are no blocks, blocks differ in their shapes, a leaf does not have as many
        layers as the matrix has columns, or has values that are not finite.

    Source: Zou et al., arXiv:2404.07999: (W'¹ .. W'ᴸ') = (U¹ .. Uᴸ) R with R = Mᵀ.
    """
    found = list(transformers(params))
    if not found:
        raise UserError("there are no blocks among the parameters, expected a transformer's")
    result: Any = params
    for path, tree in found:
        result = _replaced(result, path.split("/")[:-1], _of_transformer(path, tree, matrix))
    return dict(result)


def _of_transformer(at: str, tree: Any, matrix: Any) -> dict[str, Any]:
    names = blocks_of(tree)
    others = {name: value for name, value in tree.items() if name not in names}
    if names == [STACKED]:
        return others | {STACKED: _mixed(f"{at}{STACKED}", tree[STACKED], matrix)}
    try:
        stacked = jax.tree.map(
            lambda *layers: namespace(layers[0]).stack(layers), *(tree[name] for name in names)
        )
    except (ValueError, TypeError):
        raise UserError(f"blocks of {at or 'the tree'} differ, expected equal ones") from None
    mixed = _mixed(f"{at}block", stacked, matrix)
    return others | {
        f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], mixed) for i in range(len(matrix))
    }


def _mixed(at: str, stacked: PyTree, matrix: Any) -> PyTree:
    def mixed(path: Any, leaf: Any) -> Any:
        name = f"{at}/{leaf_name(path).replace('.', '/')}"
        check_leaf(name, leaf)
        if matrix.ndim != 2 or np.shape(leaf)[0] != matrix.shape[1]:
            raise UserError(
                f"{name} of shape {np.shape(leaf)} does not fit the map of depth of shape "
                f"{matrix.shape}: expected one column for each of {np.shape(leaf)[0]} layers"
            )
        xp, wide = namespace(leaf), jnp.promote_types(leaf.dtype, jnp.float32)
        with jax.default_matmul_precision("highest"):
            product = xp.tensordot(xp.asarray(matrix).astype(wide), leaf.astype(wide), axes=1)
        return product.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(mixed, stacked)


def _replaced(tree: Any, path: list[str], value: Any) -> dict[str, Any]:
    """A copy of a nested dictionary with another value at a path."""
    if not path:
        return dict(value)
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value)}
