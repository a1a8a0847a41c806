"""Trees of parameters as vectors: task vectors, coefficients by block, masks, norms, low rank.

A block is one tensor of one layer. Where layers are scanned, a leaf below `blocks` holds the
tensors of all of them on its leading axis, and has a coefficient, a norm or a matrix for each one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError
from rml.ops.pairwise import safe_sqrt
from rml.ops.similarity import wide as widened

STACKED = "blocks"
"""Key below which leaves hold all layers; see `rml.models.transformer.run_blocks`."""

STACK_HINT = "trees are stacked by jax.tree.map(lambda *x: jnp.stack(x), *trees)"


def wide(leaf: Any) -> Array:
    """Widens an array of half precision to float32 and leaves another as it is."""
    return widened(leaf)[0]


class LowRank(NamedTuple):
    """A matrix, or one for each layer, as a product of two.

    Attributes:
      left: [..., m, r].
      right: [..., r, n].
    """

    left: Array
    right: Array


def leaf_name(path: Sequence[Any]) -> str:
    """Makes the dotted name of a leaf, from the path that JAX gives it."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def is_stacked(path: Sequence[Any]) -> bool:
    """Tells whether a leaf of this path has a leading axis of layers."""
    return any(getattr(key, "key", None) == STACKED for key in path)


def is_vector(path: Sequence[Any], leaf: Any) -> bool:
    """Tells whether blocks of a leaf are vectors: at most one axis is long, or it is a bias."""
    block = leaf.shape[1:] if is_stacked(path) else leaf.shape
    return leaf_name(path[-1:]) == "bias" or sum(size > 1 for size in block) < 2


def is_floating(leaf: Any) -> bool:
    """Tells whether an array is of numbers that have an average: no integers or truth values."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def check_trees(base: PyTree, others: Mapping[str, PyTree], *, lead: int | None = None) -> None:
    """Checks that trees have the leaves of a base, by names and shapes alone.

    Args:
      base: A tree of parameters.
      others: Trees by the names that messages give them.
      lead: Size of a leading axis that leaves of the others have beside the base's.

    Raises:
      UserError: A leaf is missing, is too many, or has another shape; the first one is named.
    """
    expected = {leaf_name(p): np.shape(x) for p, x in jax.tree_util.tree_leaves_with_path(base)}
    added = () if lead is None else (lead,)
    for name, tree in others.items():
        found = {leaf_name(p): np.shape(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for leaf in [*expected, *found]:
            if leaf not in found or leaf not in expected:
                holder, other = (name, "the base") if leaf in found else ("the base", name)
                raise UserError(f"{holder} has a leaf {leaf!r}, {other} has none; expected equal")
            if found[leaf] != (*added, *expected[leaf]):
                raise UserError(
                    f"leaf {leaf!r} of {name} is {list(found[leaf])}, "
                    f"expected {[*added, *expected[leaf]]} as the base has {list(expected[leaf])}"
                    + ("" if lead is None else f"; {STACK_HINT}")
                )


def check_stacked(base: PyTree, name: str, stacked: PyTree) -> int:
    """Checks that a tree holds models, or vectors, with the leaves of a base on a leading axis.

    Args:
      base: A tree of parameters.
      name: Name of the stacked tree in messages.
      stacked: Trees of the base's leaves, stacked.

    Returns:
      Their number.

    Raises:
      UserError: There is none, trees are listed rather than stacked, or a leaf is missing, is too
        many, or has another shape.
    """
    if isinstance(stacked, list | tuple) and not isinstance(base, list | tuple):
        raise UserError(f"{name} is a {type(stacked).__name__}, expected one tree; {STACK_HINT}")
    leaves = jax.tree.leaves(stacked)
    if not leaves or not np.ndim(leaves[0]) or not leaves[0].shape[0]:
        raise UserError(f"{name} is empty, expected at least one tree of parameters")
    count: int = leaves[0].shape[0]
    check_trees(base, {name: stacked}, lead=count)
    return count


def check_values(base: PyTree, others: Mapping[str, PyTree], *, farthest: float = 1.0) -> None:
    """Checks on the host that checkpoints are finite and come from one base.

    Two independent trainings lie about √2 times their own norm apart, fine-tunings of one base a
    small share of it. The limit is ours.

    Args:
      base: The parameters that all were fine-tuned from.
      others: Fine-tuned parameters by the names that messages give them.
      farthest: Largest distance from the base, as a share of the base's norm; neither counts leaves
        of integers or truth values, such as a step's number.

    Raises:
      UserError: A leaf holds NaN or infinite values, or a tree lies too far from the base.
    """
    check_finite({"the base": base, **others})
    size = max(float(_norm_of_floats(base, base)), 1e-30)
    check_distances(
        {
            name: float(_norm_of_floats(base, task_vectors(base, tree))) / size
            for name, tree in others.items()
        },
        farthest,
    )


def check_finite(named: Mapping[str, PyTree]) -> None:
    """Raises `UserError` for a leaf of a tree, by its name, with NaN or infinite values."""
    for name, tree in named.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        _check_leaves([(f"leaf {leaf_name(path)!r} of {name}", leaf) for path, leaf in leaves])


def check_leaf(name: str, leaf: Any) -> None:
    """Raises `UserError` for NaN or infinite values, which of a traced leaf are not looked at.

    A leaf of NumPy stays on the host.
    """
    _check_leaves([(name, leaf)])


def _check_leaves(named: Sequence[tuple[str, Any]]) -> None:
    """`check_leaf` of several leaves, in one program."""
    known = [(name, leaf) for name, leaf in named if not isinstance(leaf, jax.core.Tracer)]
    others = [leaf for _, leaf in known if not isinstance(leaf, np.ndarray)]
    with jax.ensure_compile_time_eval():  # a constant of a traced function has values
        finite = iter(_finite(others) if others else ())
        for name, leaf in known:
            if not (np.isfinite(leaf).all() if isinstance(leaf, np.ndarray) else next(finite)):
                raise UserError(f"{name} holds NaN or infinite values, expected finite ones")


@jax.jit
def _finite(leaves: list[Any]) -> list[Any]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def check_distances(shares: Mapping[str, float], farthest: float) -> None:
    """Raises `UserError` for a model too far from its base, by shares of the base's norm."""
    for name, share in shares.items():
        if share > farthest:
            raise UserError(
                f"{name} lies {share:.2f} times the base's norm from the base, expected at most "
                f"{farthest:g}: was it fine-tuned from another base?"
            )


def check_fine_tuned(base: PyTree, stacked: Mapping[str, PyTree], *, farthest: float = 1.0) -> None:
    """Checks in one pass that stacked trees are finite and that models are near their base.

    Values are not looked at where any tree is traced.

    Args:
      base: The parameters that all were fine-tuned from.
      stacked: Trees by name, each stacked on a leading axis. "experts" are models, "vectors" are
        what models have beyond the base; trees of other names need only be finite.
      farthest: Largest distance of a model from the base, as a share of the base's norm; neither
        counts leaves that are integers or truth values in the base.

    Raises:
      UserError: A leaf holds NaN or infinite values, or a model lies too far from the base.
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((base, stacked))):
        return
    with jax.ensure_compile_time_eval():  # constants of a traced function have values
        size, found = jax.device_get(_sizes(base, dict(stacked)))
        if not all(np.isfinite(own).all() for own in (size, *found.values())):
            check_finite({"the base": base} | {
                f"{name}[{i}]": take_tree(tree, i)
                for name, tree in stacked.items() for i in range(len(found[name]))
            })  # fmt: skip
    for name, model in (("experts", "experts"), ("vectors", "the base + vectors")):
        shares = found.get(name, np.zeros(0)) / max(float(size), 1e-30)
        check_distances({f"{model}[{i}]": float(own) for i, own in enumerate(shares)}, farthest)


@jax.jit
def _sizes(base: PyTree, stacked: dict[str, PyTree]) -> tuple[Array, dict[str, Array]]:
    """Norms of the base, of how far experts are from it, and of what else is stacked."""

    def of_each(name: str, tree: PyTree) -> Array:
        vectors = task_vectors(base, tree) if name == "experts" else tree
        like_base = name in ("experts", "vectors")
        return jax.vmap(functools.partial(_norm_of_floats, base) if like_base else norm)(vectors)

    each = {name: of_each(name, tree) for name, tree in stacked.items()}
    return _norm_of_floats(base, base), each


def _norm_of_floats(base: PyTree, tree: PyTree) -> Array:
    """`norm` of the leaves that are floating-point in the base; NaN if others are not finite."""

    def counted(start: Array, own: Array) -> Array:
        return own if is_floating(start) else 0 * wide(own)  # 0 times NaN or infinity is NaN

    return norm(jax.tree.map(counted, base, tree))


def check_vectors(base: PyTree, vectors: PyTree, *, farthest: float = 1.0) -> int:
    """Checks task vectors: their leaves, and their values as `check_fine_tuned`.

    Args:
      base: The parameters that all models were fine-tuned from.
      vectors: Task vectors, stacked on a leading axis.
      farthest: Largest norm of a vector, as a share of the base's norm.

    Returns:
      Their number.

    Raises:
      UserError: There is none; a leaf is missing, is too many, has another shape, or holds NaN or
        infinite values; or a vector is too long.
    """
    count = check_stacked(base, "vectors", vectors)
    check_fine_tuned(base, {"vectors": vectors}, farthest=farthest)
    return count


def stack_trees(trees: Sequence[PyTree]) -> PyTree:
    """Stacks trees of equal leaves on a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take_tree(stacked: PyTree, at: Any) -> PyTree:
    """Takes the tree at a place, or the trees at several, of the leading axis."""
    return jax.tree.map(lambda leaf: leaf[at], stacked)


def task_vectors(base: PyTree, experts: PyTree) -> PyTree:
    """Computes what fine-tuning changed, τ_i = θ_i - θ_0, in float32 at least.

    Args:
      base: Parameters θ_0.
      experts: Fine-tuned parameters, stacked on a leading axis.

    Returns:
      Vectors, stacked likewise.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089.
    """
    return jax.tree.map(lambda own, start: wide(own) - wide(start), experts, base)


def block_axes(params: PyTree) -> PyTree:
    """Finds the shape of a leaf's blocks: `(layers,)` where it holds all layers, else `()`.

    The tree has the structure of the parameters, with a tuple in the place of each leaf.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: tuple(leaf.shape[:1]) if is_stacked(path) else (), params
    )


def block_coefficients(params: PyTree, count: int, value: ArrayLike = 0.0) -> PyTree:
    """Makes one coefficient for each of `count` vectors and each block.

    Args:
      params: Parameters of one model.
      count: Number of vectors.
      value: Value of all coefficients.

    Returns:
      Leaves [count, layers] where layers are stacked, else [count].
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(
            (count, *(leaf.shape[:1] if is_stacked(path) else ())), value, wide(leaf).dtype
        ),
        params,
    )


def check_coefficients(
    base: PyTree, coefficients: PyTree, count: int, *, parts: bool = False
) -> None:
    """Checks that coefficients are one for each of `count` vectors, by shapes alone.

    Args:
      base: Parameters of one model.
      coefficients: [count], or a tree as `block_coefficients` makes it.
      count: Number of vectors.
      parts: Whether the leaves of a tree have a last axis of parts of a block.

    Raises:
      UserError: There is another number of them, or a leaf has other axes or none.
    """
    if isinstance(coefficients, jax.Array | np.ndarray) and not parts:
        if coefficients.shape != (count,):
            raise UserError(
                f"coefficients are {list(coefficients.shape)}, expected {[count]}: one a vector"
            )
        return
    given = jax.tree_util.tree_leaves_with_path(coefficients)
    found = {leaf_name(path): list(np.shape(leaf)) for path, leaf in given}
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        own = found.get(leaf_name(path))
        wanted = [count, *leaf.shape[: int(is_stacked(path))]]
        if (own[:-1] if own and parts else own) != wanted:
            raise UserError(
                f"leaf {leaf_name(path)!r} of coefficients is {own}, expected {wanted}"
                f"{' and an axis of parts' if parts else ''}: vectors, then layers if stacked"
            )


def weighted_sum(weights: Float[Array, "n ..."], stacked: Float[Array, "n ..."]) -> Array:
    """Computes Σ_i w_i x_i over a leading axis of models, w_i a number or one for each layer.

    It is written out for each model: over few rows that are long, XLA's CPU backend takes up to two
    hundred times as long for a reduction.

    Args:
      weights: [n] or [n, layers]: the leading axes of `stacked`.
      stacked: A leaf of n models.

    Returns:
      A leaf of one model.
    """
    behind = (1,) * (stacked.ndim - weights.ndim)
    return total([w.reshape(w.shape + behind) * x for w, x in zip(weights, stacked, strict=True)])


def total(stacked: Array | Sequence[Array]) -> Array:
    """Sums over a leading axis of models, written out for the reason of `weighted_sum`."""
    return functools.reduce(jnp.add, stacked)


def combine(base: PyTree, vectors: PyTree, coefficients: PyTree, *, mask: PyTree = None) -> PyTree:
    """Computes θ_0 + m ⊙ Σ_i Λ_i τ_i, each Λ_i constant on a block.

    It is linear in the coefficients. Their gradient is an inner product of a leaf's gradient with
    its vectors; no copy of the model is made for a vector, nor by the gradient of a mask.

    Args:
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis of n.
      coefficients: [n], the same in all blocks, or a tree as `block_coefficients` makes it.
      mask: What the sum is multiplied by, a tree like the base; nothing if not given.

    Returns:
      Parameters of the base's types.

    Raises:
      UserError: A leaf of vectors or of the mask is missing, is too many, or has another shape, or
        coefficients are not one for each vector and block.

    Source: Zhang et al., Knowledge Composition using Task Vectors with Learned Anisotropic
      Scaling, arXiv:2407.02880.
    """
    check_coefficients(base, coefficients, check_stacked(base, "vectors", vectors))
    if mask is not None:
        check_trees(base, {"the mask": mask})

    def of_leaf(start: Array, own: Array, each: Array, *mask: Array) -> Array:
        moved = weighted_sum(each, own)
        for one in mask:
            moved = moved * one
        return (wide(start) + moved).astype(start.dtype)

    if isinstance(coefficients, jax.Array | np.ndarray):
        each = jnp.asarray(coefficients)
        coefficients = jax.tree.map(lambda _: each, base)
    masks = () if mask is None else (mask,)
    return jax.tree.map(of_leaf, base, vectors, coefficients, *masks)


def masked(vectors: PyTree, mask: PyTree) -> PyTree:
    """Multiplies vectors, stacked or not, by a mask with the shapes of one model's parameters."""
    return jax.tree.map(jnp.multiply, vectors, mask)


def over_blocks(function: Callable[[Array], Array], tree: PyTree) -> PyTree:
    """Applies a function to each block of each leaf.

    Args:
      function: Function from a block's array to an array.
      tree: Parameters of one model.

    Returns:
      The tree of results, with a leading axis of layers where leaves are stacked.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (jax.vmap(function) if is_stacked(path) else function)(leaf), tree
    )


def norms(tree: PyTree) -> PyTree:
    """Computes the Euclidean norm of every block, in float32 at least; gradient 0 at norm 0."""
    return over_blocks(lambda block: safe_sqrt(jnp.sum(jnp.square(wide(block)))), tree)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Computes the Euclidean norm of a whole tree, in float32 at least; gradient 0 at norm 0."""
    squares = [jnp.sum(jnp.square(wide(leaf))) for leaf in jax.tree.leaves(tree)]
    return safe_sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def inner(first: PyTree, second: PyTree) -> Float[Array, ""]:
    """Computes the inner product of two trees, in float32 at least."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return jnp.sum(jnp.stack([jnp.sum(wide(a) * wide(b)) for a, b in pairs]))


def count_bytes(tree: PyTree) -> int:
    """Counts the bytes of all arrays of a tree, such as of a model or of its low-rank parts."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Finds the shape of the matrix that a block of two axes or more is read as.

    Axes are joined to the left and right of one split: of all splits the first whose smaller
    side is largest. Kernels of convolutions become [h w in, out], those of queries, keys and values
    [in, 3 heads kv], and those of an attention's output [heads kv, out].
    """
    splits = [(int(np.prod(shape[:at])), int(np.prod(shape[at:]))) for at in range(1, len(shape))]
    return max(splits, key=min)


def low_rank(tree: PyTree, *, rank: int | None = None, fraction: float | None = None) -> PyTree:
    """Keeps the largest singular values of every block; those that `is_vector` tells stay whole.

    It is the best approximation of each matrix at its rank, and stacked layers are decomposed
    together.

    Args:
      tree: A task vector, or parameters.
      rank: Number of singular values kept of every matrix, or
      fraction: Share of a matrix's smaller side that is kept, rounded down, at least 1. What floats
        are short of a whole number is not lost: 0.29 of 100 is 29.

    Returns:
      The tree with a `LowRank` in the place of each matrix.

    Raises:
      UserError: Both are given or neither, a rank is above that of a matrix, or the fraction is
        not above 0 and at most 1.
    """
    if (rank is None) == (fraction is None):
        raise UserError(f"rank is {rank} and fraction is {fraction}, expected one of the two")
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, expected above 0 and at most 1")

    def of_leaf(path: Sequence[Any], leaf: Array) -> Any:
        if is_vector(path, leaf):
            return leaf
        lead = leaf.shape[:1] if is_stacked(path) else ()
        rows, columns = matrix_shape(leaf.shape[len(lead) :])
        share = round((fraction or 0.0) * min(rows, columns), 6)
        kept = max(1, int(share)) if rank is None else rank
        if not 1 <= kept <= min(rows, columns):
            raise UserError(
                f"rank is {kept}, expected 1 to {min(rows, columns)}: leaf {leaf_name(path)!r} is "
                f"a matrix [{rows}, {columns}]"
            )
        left, values, right = jnp.linalg.svd(
            wide(leaf).reshape(*lead, rows, columns), full_matrices=False
        )
        return LowRank(left[..., :kept] * values[..., None, :kept], right[..., :kept, :])

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def whole(reduced: PyTree, like: PyTree) -> PyTree:
    """Multiplies low-rank parts out again.

    Args:
      reduced: Tree of low-rank parts, as `low_rank` returns it.
      like: A tree whose leaves have the shapes and types wanted.

    Returns:
      The tree of arrays.
    """

    def of_leaf(part: Any, leaf: Array) -> Array:
        if isinstance(part, LowRank):
            part = part.left @ part.right
        return part.reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree.map(of_leaf, reduced, like, is_leaf=lambda part: isinstance(part, LowRank))
