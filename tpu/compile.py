"""Compiles the step of a config for chips that are not there."""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.ranges import checked_experiment
from rml.errors import UserError, install
from rml.ops import use_precision
from rml.training import CompiledTask, Task, make_mesh
from tpu.chips import CHIPS, example, parse_topology


class DoesNotFit(UserError):
    """The step needs more memory than a chip has."""


@dataclass(frozen=True)
class Compiled:
    """A step compiled for a mesh.

    Attributes:
      task: What is trained.
      step: Program of a training step, see `CompiledTask`.
      mesh: Mesh of the devices.
      seconds: That tracing and compiling took.
    """

    task: Task
    step: CompiledTask
    mesh: Mesh
    seconds: float

    @property
    def text(self) -> str:
        """The compiled program."""
        return self.step.step.as_text() or ""


def topology_devices(name: str, *, num_slices: int = 1) -> list[Any]:
    """The devices of a topology, as descriptions that can be compiled for.

    Args:
      name: Such as "v5e:16x16", or "h100:8" for GPUs of one host.
      num_slices: Slices of this shape, joined by the data centre network; TPUs alone.

    Returns:
      Devices; a chip is one of them, or two (tpu7x).

    Raises:
      UserError: An unknown chip, a shape that does not exist, or no compiler for it.
    """
    kind, shape = parse_topology(name)
    if CHIPS[kind].target:
        return _gpus(kind, shape[0])
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"compiling for TPUs needs libtpu: {install('tpu')}")
    from jax.experimental import topologies

    options: dict[str, Any] = dict(CHIPS[kind].options)
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"topology {name!r} does not exist ({reason}); try {example(kind)}"
        ) from None
    return list(found.devices)


def _gpus(kind: str, count: int) -> list[Any]:
    """GPUs of one host, of which none need be there."""
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        raise UserError(f"compiling for GPUs needs JAX's plugin: {install('cuda')}")
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda", target_config=CHIPS[kind].target, topology=f"1x1x{count}"
    )
    return list(found.devices)


def mesh_of(config: Any, devices: Sequence[Any]) -> Mesh:
    """The mesh of a config over these devices.

    Raises:
      UserError: The config has none, or one that does not fit.
    """
    if "mesh" not in config:
        raise UserError(f"the config of {config.experiment} has no mesh: it runs on one device")
    return make_mesh(dict(config.mesh), devices)


def build_task(config: Any) -> Task:
    """The training problem of a config.

    Args:
      config: Config of an experiment that trains.

    Returns:
      The task.

    Raises:
      UserError: The experiment has no `task(config)`, or as the experiment raises.
    """
    experiment = checked_experiment(config)
    if not hasattr(experiment, "task"):
        raise UserError(
            f"experiment {config.experiment} has no task(config), expected one whose training is "
            "a single task"
        )
    return experiment.task(config)


def compile_step(config: Any, devices: Sequence[Any]) -> Compiled:
    """Compiles the step that `rml.training.fit` would run under this config.

    Args:
      config: The run's config, of which `mesh`, `precision` and `seed` are read here.
      devices: Devices to compile for.

    Returns:
      The compiled step.

    Raises:
      DoesNotFit: The compiler found that memory does not suffice.
      UserError: A mesh, batch or parameter that does not fit the devices.
    """
    mesh = mesh_of(config, devices)
    return compile_task(build_task(config), mesh, precision=config.precision, seed=config.seed)


def compile_task(task: Task, mesh: Mesh, *, precision: str = "default", seed: int = 0) -> Compiled:
    """Compiles the step of a task for a mesh.

    Args:
      task: What is trained.
      mesh: Mesh of devices to compile for.
      precision: See `rml.ops.use_precision`.
      seed: Seed of the run's key.

    Returns:
      The compiled step.

    Raises:
      DoesNotFit: The compiler found that memory does not suffice.
      UserError: A batch or parameter that does not fit the devices.
    """
    started = time.perf_counter()
    try:
        with use_precision(precision):
            step = CompiledTask(task, mesh, seed=seed)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise DoesNotFit(text.splitlines()[0]) from None
    return Compiled(task, step, mesh, time.perf_counter() - started)
