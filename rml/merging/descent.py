"""What merging learns by gradients, coefficients or masks, in one loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, PyTree


class Learned(NamedTuple):
    """What was learned, such as coefficients.

    Attributes:
      coefficients: The last values, a tree as the first ones.
      losses: The objective at every step, before its update.
    """

    coefficients: PyTree
    losses: Float[Array, " steps"]


def descend(
    objective: Callable[[PyTree, Any], Float[Array, ""]],
    first: PyTree,
    batches: PyTree,
    *,
    optimizer: optax.GradientTransformation,
) -> Learned:
    """Minimises an objective, one batch a step.

    Args:
      objective: `objective(values, batch) -> loss`.
      first: Values before the first step.
      batches: Batches of all steps, stacked on a leading axis; what is reported must not be in it.
      optimizer: What turns gradients into updates.

    Returns:
      Values after the last step, and the course of the objective.
    """

    def step(carry: Any, batch: Any) -> tuple[Any, Array]:
        own, state = carry
        value, gradients = jax.value_and_grad(objective)(own, batch)
        updates, state = optimizer.update(gradients, state, own)
        return (optax.apply_updates(own, updates), state), value

    (found, _), losses = jax.lax.scan(step, (first, optimizer.init(first)), batches)
    return Learned(found, losses)
