"""aTLAS: task vectors composed with a coefficient for each block, learned from little data."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from rml.errors import UserError
from rml.ops import trees
from rml.ops.pairwise import safe_sqrt
from rml.ops.shapes import check_above_0, check_count, check_whole
from rml.training import Descent, check_batches, descend


def cosine_matrix(vectors: PyTree) -> Float[Array, "n n"]:
    """Computes the cosines between task vectors, over all leaves together.

    Args:
      vectors: Task vectors, stacked on a leading axis.

    Returns:
      Cosines; 0 beside a vector that is zero.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089, Figure 5.
    """
    flat = [trees.wide(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(vectors)]
    products = sum(own @ own.T for own in flat)
    size = safe_sqrt(jnp.diagonal(products))
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    return products * inverse[:, None] * inverse


def draw_parts(key: Key[Array, ""], params: PyTree, *, parts: int) -> PyTree:
    """Splits the entries of every block at random into parts of equal size.

    Args:
      key: Key of the draw; every block draws its own.
      params: Parameters of one model.
      parts: Number K of parts.

    Returns:
      The part of each entry, in [0, K), a tree like the parameters. Sizes of parts differ by one
      entry at most.

    Raises:
      ValueError: `parts` is no whole number of at least 1.

    Source: Zhang et al., arXiv:2407.02880, aTLAS x K; its public code draws one split for each
      shape and leaves out what is no matrix.
    """
    check_count(1, parts=parts)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))

    def of_block(own: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.permutation(own, jnp.arange(math.prod(shape)) % parts).reshape(shape)

    drawn = []
    for own, (path, leaf) in zip(keys, leaves, strict=True):
        if trees.is_stacked(path):
            each = jax.random.split(own, leaf.shape[0])
            shape = tuple(leaf.shape[1:])
            drawn.append(jax.vmap(lambda key, shape=shape: of_block(key, shape))(each))
        else:
            drawn.append(of_block(own, tuple(leaf.shape)))
    return jax.tree.unflatten(structure, drawn)


def part_coefficients(params: PyTree, count: int, *, parts: int, value: ArrayLike = 0.0) -> PyTree:
    """Makes one coefficient for each of `count` vectors, each block and each of its parts.

    Args:
      params: Parameters of one model.
      count: Number of vectors.
      parts: Number K of parts of a block.
      value: What all coefficients are.

    Returns:
      Leaves [count, layers, K] where layers are stacked, else [count, K].

    Raises:
      ValueError: `parts` is no whole number of at least 1.
    """
    check_count(1, parts=parts)
    blocks = trees.block_coefficients(params, count, value)
    return jax.tree.map(lambda own: jnp.repeat(own[..., None], parts, axis=-1), blocks)


def compose(base: PyTree, vectors: PyTree, coefficients: PyTree, *, parts: PyTree = None) -> PyTree:
    """Computes θ_0 + Σ_i Λ_i τ_i, Λ_i constant on a block or on each part of one.

    It is linear in the coefficients. With parts, K sums of vectors are formed and each entry takes
    that of its part, so that memory grows with K and not with the number of vectors.

    Args:
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis of n.
      coefficients: Coefficients as `rml.ops.trees.combine` takes them; with parts as
        `part_coefficients` makes them.
      parts: Part of each entry, as `draw_parts` makes it; without it a block is whole.

    Returns:
      Parameters of the base's types.

    Raises:
      UserError: A leaf of vectors or parts is missing, is too many, or has another shape, or
        coefficients are not one for each vector, block and part.

    Source: Zhang et al., Knowledge Composition using Task Vectors with Learned Anisotropic
      Scaling, arXiv:2407.02880, and its public code.
    """
    if parts is None:
        return trees.combine(base, vectors, coefficients)
    count = trees.check_stacked(base, "vectors", vectors)
    trees.check_coefficients(base, coefficients, count, parts=True)
    trees.check_trees(base, {"parts": parts})

    def of_leaf(start: Array, own: Array, each: Array, part: Array) -> Array:
        moved = trees.wide(start)
        for k in range(each.shape[-1]):
            moved = moved + jnp.where(part == k, trees.weighted_sum(each[..., k], own), 0)
        return moved.astype(start.dtype)

    return jax.tree.map(of_leaf, base, vectors, coefficients, parts)


def linearised(
    apply: Callable[[PyTree], PyTree], base: PyTree, vectors: PyTree, coefficients: PyTree
) -> PyTree:
    """Computes f(θ_0) + ∂f/∂θ · Σ_i Λ_i τ_i, a composition in the tangent space, by one product.

    Args:
      apply: `apply(params) -> outputs`, with the inputs held.
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis.
      coefficients: Coefficients as `rml.ops.trees.combine` takes them.

    Returns:
      Outputs, linear in the coefficients.

    Source: Zhang et al., arXiv:2407.02880, and its public code; Ortiz-Jimenez et al.,
      arXiv:2305.12827.
    """
    zeros = jax.tree.map(jnp.zeros_like, base)
    outputs, moved = jax.jvp(apply, (base,), (trees.combine(zeros, vectors, coefficients),))
    return jax.tree.map(jnp.add, outputs, moved)


def coefficient_penalty(coefficients: PyTree, *, order: int) -> Float[Array, ""]:
    """Computes half the mean, over blocks, of the norm of all vectors' coefficients.

    Args:
      coefficients: Coefficients with a leading axis of vectors.
      order: Which norm, 1 for sums of magnitudes or 2 for the Euclidean one.

    Source: Zhang et al., arXiv:2407.02880, public code (off by default there).
    """
    flat = jnp.concatenate(
        [own.reshape(own.shape[0], -1) for own in jax.tree.leaves(coefficients)], axis=1
    )
    if order == 1:
        return 0.5 * jnp.mean(jnp.sum(jnp.abs(flat), axis=0))
    if order != 2:
        raise ValueError(f"order is {order}, expected 1 or 2")
    square = jnp.sum(jnp.square(flat), axis=0)
    some = square > 0
    return 0.5 * jnp.mean(jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0))


def block_slopes(
    objective: Callable[[PyTree], Float[Array, ""]], base: PyTree, vectors: PyTree, *,
    farthest: float = 1.0,
) -> PyTree:  # fmt: skip
    """Computes the objective's derivatives by all coefficients where these are zero.

    They are the inner products of its gradient at the base with each block of each vector.

    Args:
      objective: `objective(params) -> loss`.
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis of n.
      farthest: Largest norm of a vector, as a share of the base's norm; see
        `rml.ops.trees.check_values`.

    Returns:
      Leaves [n, layers] where layers are stacked, else [n].

    Raises:
      UserError: A leaf of the vectors is missing, is too many, or has another shape; base or
        vectors hold NaN or infinite values; or a vector is too long to be of this base. Values of
        traced trees are not looked at.
    """
    count = trees.check_vectors(base, vectors, farthest=farthest)
    zeros = trees.block_coefficients(base, count)
    return jax.grad(lambda own: objective(trees.combine(base, vectors, own)))(zeros)


def select_blocks(slopes: PyTree, *, budget: int) -> PyTree:
    """Chooses the blocks, over all vectors, whose coefficients have the steepest slopes.

    The paper proposes to choose informative blocks before training, to save memory, and its public
    code has no rule for it; this one is ours. `take_blocks` takes them out of the vectors.

    Args:
      slopes: Slopes as `block_slopes` computes them.
      budget: Number of coefficients that are learned, at least 1.

    Returns:
      True where a coefficient is learned; of equal slopes all are.

    Raises:
      ValueError: The budget is no whole number.
      UserError: The budget is below 1 or above the number of coefficients.
    """
    check_whole(budget=budget)
    size = jnp.concatenate([jnp.abs(own).reshape(-1) for own in jax.tree.leaves(slopes)])
    if not 1 <= budget <= len(size):
        raise UserError(f"budget is {budget}, expected 1 to {len(size)}, the number of blocks")
    least = jnp.sort(size)[len(size) - budget]
    return jax.tree.map(lambda own: jnp.abs(own) >= least, slopes)


def learn_scaling(
    objective: Callable[[PyTree, Any], Float[Array, ""]],
    base: PyTree,
    vectors: PyTree,
    batches: PyTree,
    *,
    by_block: bool = True,
    parts: PyTree = None,
    count: int | None = None,
    kept: PyTree = None,
    learning_rate: ArrayLike | optax.Schedule = 1e-3,
    weight_decay: ArrayLike = 0.1,
    clip: float = 1.0,
    penalty: float = 0.0,
    order: int = 1,
    farthest: float = 1.0,
) -> Descent:
    """Learns coefficients of task vectors by AdamW from zero, which is the base.

    To add tasks, the objective is the mean loss over them and the vectors are their own. To a
    target with few labels the vectors of other tasks are enough: its own is not needed. To take a
    task away, the objective is minus its loss plus that of a control.

    Args:
      objective: `objective(params, batch) -> loss`.
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis of n.
      batches: Batches of all steps, stacked on a leading axis; what is reported must not be in it.
      by_block: Whether each block has coefficients of its own; otherwise each vector has one.
      parts: Part of each entry, for aTLAS x K; without it a block is whole.
      count: Number K of parts, which parts need.
      kept: Blocks whose coefficients are learned, as `select_blocks` chooses them; others stay 0.
        All vectors are read all the same: `learn_blocks` holds the kept blocks alone.
      learning_rate: AdamW's step size, or a schedule.
      weight_decay: AdamW's decay, times the step size.
      clip: Largest norm of the gradient.
      penalty: Factor of `coefficient_penalty`.
      order: See `coefficient_penalty`.
      farthest: Largest norm of a vector, as a share of the base's norm; see
        `rml.ops.trees.check_values`.

    Returns:
      Coefficients as `compose` takes them, and the course of the objective.

    Raises:
      ValueError: Parts or kept blocks are given and there is one coefficient a vector, parts
        come without their number or are more, or `clip` is not above 0.
      UserError: There is no step or no example; a leaf of vectors or parts is missing, is too many,
        or has another shape than the base's; base or vectors hold NaN or infinite values; or a
        vector is too long to be of this base. Values of traced trees are not looked at.

    Source: Zhang et al., arXiv:2407.02880; optimiser, decay and clipping are its public code's.
    """
    if not by_block and (parts is not None or kept is not None):
        raise ValueError("parts and kept blocks need coefficients by block, by_block=True")
    check_batches("batches", batches)
    _check_parts(base, parts, count)
    number = trees.check_vectors(base, vectors, farthest=farthest)
    first: PyTree = jnp.zeros(number)
    if by_block:
        first = trees.block_coefficients(base, number)
    if count is not None:
        first = part_coefficients(base, number, parts=count)

    def only(own: Array, mask: Array) -> Array:
        """The coefficients of blocks that are kept, of all of their parts."""
        return jnp.where(jnp.reshape(mask, mask.shape + (1,) * (own.ndim - mask.ndim)), own, 0)

    def whole(own: PyTree, batch: Any) -> Array:
        if kept is not None:
            own = jax.tree.map(only, own, kept)
        value = objective(compose(base, vectors, own, parts=parts), batch)
        return value + penalty * coefficient_penalty(own, order=order) if penalty else value

    return descend(
        whole, first, batches, optimizer=clipped_adamw(learning_rate, weight_decay, clip)
    )


def clipped_adamw(
    learning_rate: ArrayLike | optax.Schedule, weight_decay: ArrayLike, clip: float
) -> optax.GradientTransformation:
    """Builds what coefficients are learned by: AdamW on gradients of a largest norm above 0."""
    check_above_0(clip=clip)
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(learning_rate, weight_decay=weight_decay)
    )


def _check_parts(base: PyTree, parts: PyTree, count: int | None) -> None:
    """Raises `ValueError` unless parts of all entries and their number are given, or neither."""
    if (parts is None) != (count is None):
        given = "count" if parts is None else "parts"
        raise ValueError(f"{given} is given alone, expected parts and count, their number, or none")
    if count is None:
        return
    trees.check_trees(base, {"parts": parts})
    known = [own for own in jax.tree.leaves(parts) if not isinstance(own, jax.core.Tracer)]
    top = max((int(np.max(np.asarray(own))) for own in known if own.size), default=0)
    if top >= count:
        raise ValueError(f"count is {count} and parts go up to {top}, expected count={top + 1}")
