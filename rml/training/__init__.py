"""The engine: tasks, state, the fit loop, meshes, checkpoints, writers, the run directory.

A `Task` is a training problem as pure functions; `gradient_task` and `momentum_task` make one of a
loss, which returns a `Loss`, and `fit` trains it in a `RunDirectory` on any mesh. `momentum`,
`queue` (both He et al., Momentum Contrast, arXiv:1911.05722) and `grad_cache` (Gao et al.,
arXiv:2101.06983) are what methods of contrast keep and save. `kar` is the optimiser of the public
code of Zhang, arXiv:2401.17948. `cross_entropy_search` tunes hyper-parameters of any objective.
`lookahead_gradient` and `lookahead_weights` are bilevel: what a training step owes to parameters
of its loss. `descend` is a whole run in one program, for what is small.

`coalesce`, `decoalesce`, `interpolate` and `v_cycle` train a transformer in part at a smaller size:
Zou et al., A Multi-Level Framework for Accelerating Training Transformer Models, arXiv:2404.07999.
"""

from rml.training.bilevel import Lookahead, lookahead_gradient, lookahead_weights
from rml.training.claims import Claim, judge, measure_claims
from rml.training.cross_entropy_search import cross_entropy_search
from rml.training.descent import Descent, check_batches, descend
from rml.training.fit import CompiledTask, Interrupted, NonFiniteLoss, fit, initial_state
from rml.training.grad_cache import grad_cache
from rml.training.mesh import DEFAULT_RULES, make_mesh, over_batch, split_tokens, use_mesh
from rml.training.momentum import momentum_schedule, momentum_task, update_momentum
from rml.training.multilevel import (
    Groups,
    Level,
    Phase,
    coalesce,
    decoalesce,
    groups_of,
    interpolate,
    start_of_phase,
    unit_groups,
    v_cycle,
)
from rml.training.optimizer import Optimizer, build_optimizer, kar
from rml.training.progress import Progress
from rml.training.queue import Queue, enqueue, init_queue
from rml.training.rundir import RunDirectory
from rml.training.task import Loss, Task, TrainState, create_state, gradient_task
from rml.training.writers import MetricsWriter, read_metrics

__all__ = [
    "DEFAULT_RULES",
    "Claim",
    "CompiledTask",
    "Descent",
    "Groups",
    "Interrupted",
    "Level",
    "Lookahead",
    "Loss",
    "MetricsWriter",
    "NonFiniteLoss",
    "Optimizer",
    "Phase",
    "Progress",
    "Queue",
    "RunDirectory",
    "Task",
    "TrainState",
    "build_optimizer",
    "check_batches",
    "coalesce",
    "create_state",
    "cross_entropy_search",
    "decoalesce",
    "descend",
    "enqueue",
    "fit",
    "grad_cache",
    "gradient_task",
    "groups_of",
    "init_queue",
    "initial_state",
    "interpolate",
    "judge",
    "kar",
    "lookahead_gradient",
    "lookahead_weights",
    "make_mesh",
    "measure_claims",
    "momentum_schedule",
    "momentum_task",
    "over_batch",
    "read_metrics",
    "split_tokens",
    "start_of_phase",
    "unit_groups",
    "update_momentum",
    "use_mesh",
    "v_cycle",
]
