"""The momentum encoder, a moving average of the trained one, and schedules of its momentum."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rml.errors import unknown
from rml.training.optimizer import Optimizer
from rml.training.task import Metrics, Task, TrainState, at_updates, gradient_task, start_average

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]


def update_momentum(average: PyTree, online: PyTree, momentum: float | Float[Array, ""]) -> PyTree:
    """Moves an average towards the trained variables, momentum · average + (1 - momentum) · online.

    Args:
      average: Variables of the momentum encoder.
      online: Variables of the trained encoder. Entries of its dictionaries that `average` lacks,
        such as a prediction head's, are left out.
      momentum: Share of the average that stays, in [0, 1].

    Returns:
      The new average. No gradient flows into it.

    Raises:
      ValueError: If `online` lacks an entry of `average`.

    Source: He et al. 2020, Momentum Contrast (arXiv:1911.05722), eq. 2.
    """

    def move(old: Array, new: Array) -> Array:
        # In this form an average that equals its target stays as it is, to the bit.
        return old + ((1 - momentum) * (jax.lax.stop_gradient(new) - old)).astype(old.dtype)

    return jax.tree.map(move, average, _like(online, average))


def _like(tree: PyTree, pattern: PyTree) -> PyTree:
    if not isinstance(pattern, Mapping):
        return tree
    missing = sorted(pattern.keys() - tree.keys())
    if missing:
        raise ValueError(f"the trained variables lack {missing[0]!r}, which the average has")
    return {key: _like(tree[key], inner) for key, inner in pattern.items()}


def momentum_schedule(name: str, *, momentum: float | Float[Array, ""], steps: int) -> Schedule:
    """Builds the schedule of the momentum.

    Args:
      name: "constant", or "cosine": from `momentum` at step 0 to 1 at the last along half a
        cosine.
      momentum: Momentum at step 0; an array where many runs are one program, whose range is not
        checked.
      steps: Length of the run.

    Returns:
      `schedule(step) -> momentum`.

    Raises:
      ValueError: If the name is unknown, `momentum` is not in [0, 1] or `steps` is below 1.

    Source: cosine: Grill et al. 2020, Bootstrap Your Own Latent (arXiv:2006.07733), Section 3.2;
    taken up by Chen et al. 2021, MoCo v3 (arXiv:2104.02057).
    """
    if name not in ("constant", "cosine"):
        raise unknown("momentum schedule", name, ("constant", "cosine"))
    if not isinstance(momentum, jax.Array) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def schedule(step: Any) -> Float[Array, ""]:
        if name == "constant":
            return jnp.asarray(momentum, jnp.float32)
        done = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0, 1)
        return 1 - (1 - momentum) * (jnp.cos(jnp.pi * done) + 1) / 2

    return schedule


def momentum_task(
    *,
    momentum: Schedule,
    averaged: Sequence[str],
    init_variables: Callable[[Any], PyTree],
    optimizer: Optimizer,
    extra: Callable[[Any], dict[str, Any]] = lambda key: {},
    **around: Any,
) -> Task:
    """Makes the task of a loss that reads a momentum encoder, `state.extra["momentum"]`.

    Args:
      momentum: `momentum(step)`, see `momentum_schedule`.
      averaged: Names of the model's parts that have a moving average.
      init_variables: `init_variables(key) -> variables` of the trained model.
      optimizer: Optimiser; where it gathers several batches, the average waits for its update.
      extra: `extra(key) -> dict`, what else `state.extra` holds, such as a queue.
      **around: Further arguments of `gradient_task`.

    Returns:
      The task. After each update the average moves, which is of float32 at least; its metrics add
      the momentum.
    """

    def start(key: Any, variables: PyTree) -> dict[str, Any]:
        average = {
            name: {part: tree[part] for part in averaged if part in tree}
            for name, tree in variables.items()
        }
        return {"momentum": start_average(average), **extra(key)}

    def move(before: TrainState, state: TrainState) -> tuple[dict[str, Any], Metrics]:
        share, average = momentum(before.step), before.extra["momentum"]
        online = state.training_variables(state.params)
        moved = update_momentum(average, online, share)
        average = at_updates(optimizer, before.step, moved, average)
        return {"momentum": average}, {"momentum": share}

    return gradient_task(
        init_variables=init_variables, optimizer=optimizer, extra=start, after=move, **around
    )
