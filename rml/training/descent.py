"""Steps of an optimiser in one loop, where a whole run is one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError


class Descent(NamedTuple):
    """What was learned, and how.

    Attributes:
      params: The last parameters, a tree as the first ones.
      losses: The loss at every step, before its update.
    """

    params: PyTree
    losses: Float[Array, " steps"]


def check_batches(name: str, batches: PyTree) -> None:
    """Checks that `descend` would take a step, and that each has an example, by shapes alone.

    Args:
      name: Name of the batches in messages.
      batches: Arrays whose first axis counts steps and whose second, if any, counts examples.

    Raises:
      UserError: There is no array, no step, or no example in a batch.
    """
    shapes = [list(np.shape(leaf)) for leaf in jax.tree.leaves(batches)]
    if not shapes or any(0 in shape[:2] for shape in shapes):
        raise UserError(
            f"{name} hold arrays of {shapes}, expected at least 1 step and 1 example in each batch"
        )


def descend(
    loss: Callable[[PyTree, Any], Float[Array, ""]],
    params: PyTree,
    inputs: PyTree,
    *,
    optimizer: optax.GradientTransformation,
) -> Descent:
    """Takes steps of an optimiser, each on an input of its own, in one loop.

    Args:
      loss: `loss(params, input)`, to be minimised.
      params: Parameters before the first step.
      inputs: Arrays whose first axis counts steps, such as batches or keys.
      optimizer: Any of Optax.

    Returns:
      Parameters after the last step, and the course of the loss.
    """

    def step(carry: Any, item: Any) -> tuple[Any, Array]:
        own, state = carry
        value, gradients = jax.value_and_grad(loss)(own, item)
        updates, state = optimizer.update(gradients, state, own)
        return (optax.apply_updates(own, updates), state), value

    (found, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), inputs)
    return Descent(found, losses)
