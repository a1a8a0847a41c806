"""The engine: tasks, state, the fit loop, meshes, checkpoints, writers, the run directory."""

from rml.training.claims import Claim, measure_claims
from rml.training.fit import CompiledTask, Interrupted, NonFiniteLoss, fit, initial_state
from rml.training.mesh import DEFAULT_RULES, make_mesh, over_batch, use_mesh
from rml.training.optimizer import Optimizer, build_optimizer
from rml.training.progress import Progress
from rml.training.rundir import RunDirectory
from rml.training.task import Task, TrainState, create_state, gradient_task
from rml.training.writers import MetricsWriter, read_metrics

__all__ = [
    "DEFAULT_RULES",
    "Claim",
    "CompiledTask",
    "Interrupted",
    "MetricsWriter",
    "NonFiniteLoss",
    "Optimizer",
    "Progress",
    "RunDirectory",
    "Task",
    "TrainState",
    "build_optimizer",
    "create_state",
    "fit",
    "gradient_task",
    "initial_state",
    "make_mesh",
    "measure_claims",
    "over_batch",
    "read_metrics",
    "use_mesh",
]
