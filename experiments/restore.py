"""States of finished runs."""

from pathlib import Path

import flax.linen as nn
import jax

from rml.training import Task, TrainState
from rml.training.checkpoint import restore_state


def restore(directory: Path, task: Task) -> TrainState:
    """The newest state of a run, on one device; the run is only read.

    Args:
      directory: The run directory.
      task: The run's task.

    Returns:
      The state.

    Raises:
      UserError: There is no checkpoint, or none of this task.
    """
    abstract = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )
    return restore_state(directory / "checkpoints", abstract)
