"""Maps of a transformer's width: every kernel K becomes AᵀKB, from parameters to parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError
from rml.models.layouts import BLOCKS, ENDS, SPACES, blocks_of, kind_of
from rml.ops.trees import STACKED, check_leaf


class WidthMap(NamedTuple):
    """What the units of one space become, for what reads them and for what writes them.

    Attributes:
      reads: A [n, m]: a kernel with n inputs becomes AᵀK; or one for each layer, [layers, n, m].
      writes: B [n, m]: a kernel with n outputs becomes KB, as do biases, norms and tables.
    """

    reads: Any
    writes: Any


def map_width(
    params: PyTree, maps: Mapping[str, WidthMap], *, head_width: int | None = None
) -> dict[str, Any]:
    """Maps the widths of a transformer: K ← AᵀKB for every leaf, by what it reads and writes.

    The tree is that of a `ViT`, `Bert` or `Llama`, or has such trees and heads (`MaskedLMHead`, a
    linear `Classifier`) below. Where logits are products with the table of tokens, the table is
    mapped by B and the final norm by A, so that logits keep their size.

    Args:
      params: Parameters, unboxed; blocks are scanned ("blocks") or not ("block0", ...).
      maps: Map of each space by its name in `SPACES`; spaces without one stay. `query`, `key`,
        `value` and `heads` have the units of all heads side by side, see `of_heads`.
      head_width: Width of a head afterwards; as before if not given.

    Returns:
      Parameters of the same structure.

    Raises:
      UserError: An unknown space; a leaf that no map is known for, that a map does not fit, that
        has values which are not finite, or whose new width is not one of whole heads.

    Source: Zou et al., arXiv:2404.07999 (coalescing), and Imfeld et al., arXiv:2310.05719
    (alignment), whose maps differ and whose product is this one. The rule for tied tables is ours.
    """
    for name in maps:
        if name not in SPACES:
            raise UserError(f"unknown space {name!r} of maps, expected one of {', '.join(SPACES)}")
    return _tree(params, "", maps, head_width)


def of_heads(
    matrix: Float[Array | np.ndarray, "h g"], head_width: int
) -> Float[Array | np.ndarray, "hk gk"]:
    """Turns a map of whole heads into that of their units side by side: M ⊗ I."""
    xp = namespace(matrix)
    return xp.kron(matrix, xp.eye(head_width, dtype=matrix.dtype))


def namespace(leaf: Any) -> Any:
    """Returns NumPy for arrays of NumPy, which so stay on the host; JAX for others."""
    return np if isinstance(leaf, np.ndarray) else jnp


def _tree(
    tree: Any, path: str, maps: Mapping[str, WidthMap], head_width: int | None
) -> dict[str, Any]:
    kind = kind_of(tree)
    if kind is None:
        for name, value in tree.items():
            if not isinstance(value, Mapping):
                raise UserError(
                    f"no map is known for {path}{name} of shape {np.shape(value)}, expected the "
                    "parameters of a ViT, a Bert, a Llama or their heads"
                )
        return {name: _tree(own, f"{path}{name}/", maps, head_width) for name, own in tree.items()}
    result: dict[str, Any] = {}
    names = blocks_of(tree)
    for name, value in tree.items():
        at = f"{path}{name}"
        if name in names:
            numbered = () if name == STACKED else (names.index(name), len(names))
            leaf = _Leaf(maps, head_width, name == STACKED, *numbered)
            table = BLOCKS["llama" if kind == "tied" else kind]
            result[name] = _children(value, f"{at}/", "", table, leaf)
        else:
            own = _children({name: value}, path, "", ENDS[kind], _Leaf(maps, head_width))
            result[name] = own[name]
    return result


class _Leaf(NamedTuple):
    """How leaves of one place are mapped."""

    maps: Mapping[str, WidthMap]
    head_width: int | None
    stacked: bool = False
    layer: int | None = None
    layers: int | None = None


def _children(
    tree: Mapping[str, Any], path: str, below: str, table: Mapping[str, str], leaf: _Leaf
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in tree.items():
        at, key = f"{path}{name}", f"{below}{name}"
        if isinstance(value, Mapping):
            result[name] = _children(value, f"{at}/", f"{key}/", table, leaf)
        elif key not in table:
            raise UserError(f"no map is known for {at} of shape {np.shape(value)}")
        else:
            check_leaf(at, value)
            mapped = _fused if key.startswith("qkv/") else _mapped
            result[name] = mapped(at, value, table[key], leaf)
    return result


def _fused(at: str, value: Any, axes: str, leaf: _Leaf) -> Any:
    """Maps queries, keys and values that lie in one array along the third axis from the end."""
    reads = axes.removesuffix("- - -").removesuffix("- -")
    parts = [
        _mapped(at, part, f"{reads}>{name}*", leaf)
        for part, name in zip(
            namespace(value).moveaxis(value, -3, 0), ("query", "key", "value"), strict=True
        )
    ]
    if len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise UserError(f"{at} would get queries, keys and values of shapes {shapes}, not of one")
    return namespace(value).stack(parts, axis=-3)


def _mapped(at: str, value: Any, axes: str, leaf: _Leaf) -> Any:
    """Maps every axis of a leaf in turn."""
    shape = value.shape
    specs = [(spec[0], spec[1:].rstrip("*"), 1 + spec.endswith("*")) for spec in axes.split()]
    position = int(leaf.stacked)
    if len(shape) != position + sum(count for *_, count in specs):
        raise UserError(
            f"{at} has shape {shape}, expected axes {axes!r} after {position} of layers"
        )
    result = value
    for side, space, count in specs:
        found = leaf.maps.get(space, leaf.maps.get(space.partition(".")[0])) if space else None
        if found is not None:
            matrix = namespace(value).asarray(found.reads if side == "<" else found.writes)
            split = _checked(f"{at} of shape {shape}", shape, matrix, position, count, space, leaf)
            result = _along(
                result,
                matrix if leaf.layer is None else _layer(matrix, leaf.layer),
                position,
                count,
                split,
            )
        position += count
    return result.astype(value.dtype)


def _layer(matrix: Any, layer: int) -> Any:
    return matrix[layer] if matrix.ndim == 3 else matrix


def _checked(
    what: str, shape: tuple[int, ...], matrix: Any, position: int, count: int, space: str,
    leaf: _Leaf,
) -> tuple[int, ...]:  # fmt: skip
    """The axes that a map gives in the place of `count` axes, where it fits them."""
    units = int(np.prod(shape[position : position + count]))
    given = f"the map of {space} of shape {matrix.shape}"
    layers = shape[0] if leaf.stacked else leaf.layers
    if matrix.shape[-2:-1] != (units,) or matrix.shape[:-2] not in ((), (layers,)):
        each = "" if layers is None else f", or one for each of {layers} layers"
        raise UserError(f"{what} does not fit {given}: expected one of {units} units{each}")
    new = matrix.shape[-1]
    if count == 1:
        return (new,)
    head = leaf.head_width or shape[position + 1]
    if new % head:
        raise UserError(f"{what} would get {new} units by {given}, expected whole heads of {head}")
    return (new // head, head)


def _along(value: Any, matrix: Any, position: int, count: int, split: tuple[int, ...]) -> Any:
    """Contracts `count` axes from a position on with a matrix, or with one for each layer."""
    xp = namespace(value)
    before, after = value.shape[:position], value.shape[position + count :]
    wide = jnp.promote_types(value.dtype, jnp.float32)
    last = xp.moveaxis(value.reshape(*before, -1, *after), position, -1).astype(wide)
    rows = last.reshape(*last.shape[: matrix.ndim - 2], -1, last.shape[-1])
    with jax.default_matmul_precision("highest"):
        product = xp.matmul(rows, matrix.astype(wide))
    product = product.reshape(*last.shape[:-1], matrix.shape[-1])
    return xp.moveaxis(product, -1, position).reshape(*before, *split, *after)
