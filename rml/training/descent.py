"""Steps of an optimiser in one loop, where a whole run is one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, PyTree


class Descent(NamedTuple):
    """What was learned, and how.

    Attributes:
      params: The last parameters, a tree as the first ones.
      losses: The loss at every step, before its update.
    """

    params: PyTree
    losses: Float[Array, " steps"]


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
