"""AdaMerging: coefficients of task vectors learned from unlabelled inputs by their entropy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rml.ops import trees
from rml.ops.shapes import check_finite
from rml.training import Descent, check_batches, descend


def prediction_entropy(logits: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Computes the entropy of the softmax, in nats; logits of -inf are classes that are absent.

    Args:
      logits: Logits of each example.

    Returns:
      0 for a certain prediction, log C for a uniform one of C classes, NaN where a logit is NaN or
      +inf; float32 or wider.
    """
    logits = trees.wide(logits)
    present = logits != -jnp.inf
    logs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.where(present, jnp.exp(logs) * jnp.where(present, logs, 0), 0), axis=-1)


def learn_coefficients(
    objective: Callable[[PyTree, Any], Float[Array, ""]],
    base: PyTree,
    vectors: PyTree,
    batches: PyTree,
    *,
    by_block: bool = True,
    clip: bool = False,
    start: ArrayLike = 0.3,
    learning_rate: ArrayLike = 1e-3,
    farthest: float = 1.0,
) -> Descent:
    """Learns the coefficients of task vectors by Adam.

    With the mean `prediction_entropy` over unlabelled inputs of all tasks as objective it is
    AdaMerging: layer-wise by block, task-wise with one coefficient a vector. With a loss on labels
    it is supervised.

    Args:
      objective: `objective(params, batch) -> loss`.
      base: Parameters θ_0.
      vectors: Task vectors, stacked on a leading axis of n.
      batches: Batches of all steps, stacked on a leading axis; what is reported must not be in it.
      by_block: Whether each block has coefficients of its own.
      clip: Whether coefficients are kept in [0, 1] after every step, as in some public codes.
      start: Value of all coefficients before the first step.
      learning_rate: Adam's step size.
      farthest: Largest norm of a vector, as a share of the base's norm; see
        `rml.ops.trees.check_values`.

    Returns:
      Coefficients and the course of the objective.

    Raises:
      UserError: There is no step or no example; a leaf of the vectors is missing, is too many, or
        has another shape; base or vectors hold NaN or infinite values; or a vector is too long to
        be of this base. Values of traced trees are not looked at.
      ValueError: `start` is not finite.

    Source: Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task Learning,
      arXiv:2310.02575, which learns from the test inputs themselves.
    """
    check_finite(start=start)
    check_batches("batches", batches)
    count = trees.check_vectors(base, vectors, farthest=farthest)
    first = trees.block_coefficients(base, count, start) if by_block else jnp.full(count, start)
    optimizer = optax.adam(learning_rate)
    if clip:
        optimizer = optax.chain(optimizer, optax.stateless(_within))
    found = descend(
        lambda own, batch: objective(trees.combine(base, vectors, own), batch), first, batches,
        optimizer=optimizer,
    )  # fmt: skip
    # A step to an end may round beyond it.
    return found._replace(params=_clipped(found.params)) if clip else found


def _within(updates: PyTree, params: PyTree) -> PyTree:
    """Updates that lead no further than to 0 or 1."""
    return jax.tree.map(jnp.subtract, _clipped(optax.apply_updates(params, updates)), params)


def _clipped(coefficients: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.clip(leaf, 0, 1), coefficients)
