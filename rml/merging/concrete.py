"""Concrete subspaces: one mask of all task vectors, learned so that they interfere less."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from rml.errors import UserError
from rml.ops import trees
from rml.ops.shapes import check_finite
from rml.training import check_batches, descend


class LearnedMask(NamedTuple):
    """A mask that was learned.

    Attributes:
      logits: Logits of the mask's entries, a tree like the parameters; 0 is a probability of 1/2.
      losses: The objective at every step, before the step.
    """

    logits: PyTree
    losses: Float[Array, " steps"]


def binary_concrete(
    key: Key[Array, ""], logits: Float[Array, "*s"], *, temperature: ArrayLike
) -> Float[Array, "*s"]:
    """Draws relaxed Bernoulli variables, σ((x + log u - log(1 - u)) / T) with u uniform.

    The probability of more than 1/2 is σ(x) at every temperature; towards 0 the draws become
    Bernoulli ones.

    Args:
      key: Key of the draw.
      logits: Logits x of the probabilities.
      temperature: Temperature T above 0.

    Returns:
      Values in [0, 1], differentiable by the logits.

    Raises:
      UserError: The temperature, known outside `jit`, is not above 0.

    Source: Maddison et al., The Concrete Distribution, arXiv:1611.00712, equation 16.
    """
    if not isinstance(temperature, jax.core.Tracer) and not np.all(np.asarray(temperature) > 0):
        raise UserError(f"temperature is {temperature}, expected a number above 0")
    noise = jax.random.logistic(key, logits.shape, logits.dtype)
    return jax.nn.sigmoid((logits + noise) / temperature)


def mask_logits(params: PyTree, value: float = 0.0) -> PyTree:
    """Makes logits of a mask over parameters of one model, in float32, all of one value."""
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, jnp.float32), params)


def draw_mask(key: Key[Array, ""], logits: PyTree, *, temperature: ArrayLike = 0.5) -> PyTree:
    """Draws a relaxed mask; every leaf has a key of its own, by its place.

    Args:
      key: Key of the draw.
      logits: Logits as `mask_logits` makes them.
      temperature: See `binary_concrete`; 0.5 in the paper.
    """
    leaves, structure = jax.tree.flatten(logits)
    drawn = [
        binary_concrete(own, leaf, temperature=temperature)
        for own, leaf in zip(_keys(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def expected_mask(logits: PyTree) -> PyTree:
    """Computes the probabilities σ(x): a mask without a draw."""
    return jax.tree.map(jax.nn.sigmoid, logits)


def hard_mask(logits: PyTree, *, key: Key[Array, ""] | None = None) -> PyTree:
    """Makes a mask of zeros and ones, which `save_mask` keeps as bits.

    Args:
      logits: Logits as `learn_mask` returns them.
      key: Key of a Bernoulli draw with probabilities σ(x); without, what is likelier than not is 1.
    """
    leaves, structure = jax.tree.flatten(logits)
    keys = [None] * len(leaves) if key is None else _keys(key, len(leaves))
    hard = [
        leaf > 0 if own is None else jax.random.bernoulli(own, jax.nn.sigmoid(leaf))
        for own, leaf in zip(keys, leaves, strict=True)
    ]  # fmt: skip
    return jax.tree.unflatten(structure, [own.astype(jnp.float32) for own in hard])


def _keys(key: Key[Array, ""], count: int) -> Key[Array, " n"]:
    """A key for each leaf, by its place."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def mask_vectors(vectors: PyTree, mask: PyTree) -> PyTree:
    """Masks task vectors and rescales every block by the mask's mean, τ ⊙ m / mean(m).

    A constant mask changes nothing. Of a leaf that holds all layers each layer has its own mean.

    Args:
      vectors: Task vectors, stacked on a leading axis.
      mask: Mask in [0, 1], a tree like the parameters of one model.

    Raises:
      UserError: A leaf of the vectors is missing, is too many, or has another shape.

    Source: Tang et al., arXiv:2312.06173, Section 3.2; the mean is a tensor's in its public code.
    """
    trees.check_stacked(mask, "vectors", vectors)
    return trees.masked(vectors, _rescaled(mask))


def _rescaled(mask: PyTree) -> PyTree:
    """The mask over its mean in every block."""

    def unit(block: Array) -> Array:
        return block / jnp.maximum(jnp.mean(block), jnp.finfo(block.dtype).tiny)

    return trees.over_blocks(unit, mask)


def learn_mask(
    objective: Callable[[PyTree, Any], Float[Array, ""]],
    base: PyTree,
    vectors: PyTree,
    batches: PyTree,
    *,
    key: Key[Array, ""],
    inner_batches: PyTree = None,
    scale: ArrayLike = 0.3,
    temperature: ArrayLike = 0.5,
    learning_rate: ArrayLike = 1e-3,
    inner_rate: ArrayLike = 1.0,
    by_block: bool = True,
    clip: ArrayLike = False,
    sampled: bool = True,
    farthest: float = 1.0,
) -> LearnedMask:
    """Learns the logits of one mask that all task vectors share, on unlabelled inputs.

    Without `inner_batches` masked vectors are added with the factor `scale`. With them every step
    first takes one step of Adam on the coefficients of blocks, from `scale`, with the mask held,
    and judges the mask with the coefficients so found: bilevel, to first order. The coefficients'
    Adam starts anew each time, so that its step is `inner_rate` in size (the public code keeps
    its moments and takes the gradient where the last step had left the coefficients).

    Args:
      objective: `objective(params, batch) -> loss`, such as a mean `prediction_entropy`.
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis.
      batches: Batches of all steps, stacked on a leading axis; what is reported must not be in it.
      key: Key of the draws, one a step.
      inner_batches: Batches that the coefficients are adapted on, likewise.
      scale: Coefficient of all vectors, or its value before the inner step.
      temperature: See `binary_concrete`.
      learning_rate: Adam's step size for the logits.
      inner_rate: Adam's step size for the coefficients; 1 in the paper, where each so moves by 1.
      by_block: Whether each block has coefficients of its own; otherwise each vector has one.
      clip: Whether the inner step keeps coefficients in [0, 1], as in one of the public codes.
      sampled: Whether masks are drawn; without, the mask is σ(x) (ours, for comparison).
      farthest: Largest norm of a vector, as a share of the base's norm; see
        `rml.ops.trees.check_values`.

    Returns:
      Logits and the course of the objective.

    Raises:
      UserError: There is no step or no example, among inner batches too; a leaf of the vectors is
        missing, is too many, or has another shape; base or vectors hold NaN or infinite values; or
        a vector is too long to be of this base. Values of traced trees are not looked at.
      ValueError: `scale` is not finite.

    Source: Tang et al., Concrete Subspace Learning based Interference Elimination for Multi-task
      Model Fusion, arXiv:2312.06173, Algorithm 1.
    """
    check_finite(scale=scale)
    check_batches("batches", batches)
    if inner_batches is not None:
        check_batches("inner_batches", inner_batches)
    count = trees.check_vectors(base, vectors, farthest=farthest)
    inner = optax.adam(inner_rate)

    # Vectors are summed before they are masked, so that no step holds each of them masked.
    def loss(coefficients: PyTree, mask: PyTree, batch: Any) -> Array:
        return objective(trees.combine(base, vectors, coefficients, mask=mask), batch)

    def adapted(mask: PyTree, batch: Any) -> PyTree:
        start = trees.block_coefficients(base, count, 1.0) if by_block else jnp.ones(count)
        start = jax.tree.map(lambda leaf: leaf * scale, start)
        if inner_batches is None:
            return start
        slopes = jax.grad(loss)(start, mask, batch)
        step, _ = inner.update(slopes, inner.init(start), start)
        moved = optax.apply_updates(start, step)
        return jax.tree.map(lambda leaf: jnp.where(clip, jnp.clip(leaf, 0, 1), leaf), moved)

    def outer(logits: PyTree, given: Any) -> Array:
        number, batch, ahead = given

        mask = expected_mask(logits)
        if sampled:
            own = jax.random.fold_in(key, number)
            mask = draw_mask(own, logits, temperature=temperature)
        mask = _rescaled(mask)
        held = jax.lax.stop_gradient(mask)
        coefficients = jax.lax.stop_gradient(adapted(held, ahead))
        return loss(coefficients, mask, batch)

    steps = jax.tree.leaves(batches)[0].shape[0]
    given = (jnp.arange(steps), batches, batches if inner_batches is None else inner_batches)
    found = descend(outer, mask_logits(base), given, optimizer=optax.adam(learning_rate))
    return LearnedMask(found.params, found.losses)
