"""Many runs of one shape as one: seeds, and floats of the config, are an axis of one program.

`many` makes of a recipe's `task` and several configs one `Task`, which `rml.training.fit` trains as
it trains any other. Each run keeps its own key, data order and hyperparameters; `unstack` gives
its state back.

Such runs are small by design: each lies whole on one device, where it is judged too.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from experiments.common.encoders import build_encoder
from experiments.common.evaluators import ImageEvaluator
from experiments.common.pretraining import train
from rml.errors import UserError
from rml.nested import flatten
from rml.training import RunDirectory, Task, TrainState, initial_state
from rml.training.durable import write_json
from rml.training.mesh import batch_axes
from rml.training.processes import is_primary, local_copy

SEED, SEEDS = "seed", 2**32
"""Key of a config, and how many seeds `jax.random.key` tells apart."""
KEPT_SEEDS = "seeds.json"
"""File of a run directory with the seeds of `pretrain_many`, of which its config has none."""
TaskOf = Callable[[Any], Task]
"""A recipe's `task`."""
Values = dict[str, Array]
"""By dotted key of the config, the value of every run, or inside the program that of one."""


def many(task_of: TaskOf, configs: Sequence[Any]) -> Task:
    """Makes one task of several runs; each trains as it would alone.

    Every array of the state and of the batches has a leading axis of runs, which is split over
    the batch axes of a mesh. Metrics are means over runs under their usual names, and those of
    run i under `<name>/<i>`: a step gives those of all runs as one vector. The key that `init` is
    given is not used: each run has its own seed.

    Args:
      task_of: `task_of(config) -> Task`, traced with arrays in the place of what differs.
      configs: One config a run; they differ in `seed` and in floats only.

    Returns:
      The task.

    Raises:
      UserError: The configs differ in something else, or in a float that the task's program cannot
        take as an array, such as one that decides whether a part of it exists.
    """
    values = differences(configs)
    singles = [task_of(config) for config in configs]

    def one(call: Callable[..., Any]) -> Callable[..., Any]:
        """`call(task, *args)` of one run, from its values and the same arguments."""

        def of_run(own: Values, *args: Any) -> Any:
            try:
                return call(task_of(replaced(configs[0], own)), *args)
            except (TypeError, ValueError) as error:
                raise _blame(task_of, configs[0], own, call, args) or error from None

        return of_run

    def init(key: Any) -> TrainState:
        del key
        keys = jnp.stack([jax.random.key(config.seed) for config in configs])
        start = one(lambda task, key: nn.meta.unbox(task.init(key)))
        return jax.tree.map(_box, jax.vmap(start)(values, keys))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        advance = each(one(lambda task, *args: task.step(*args)))
        state, metrics = advance(values, state, batch)
        means = {name: jnp.mean(runs) for name, runs in metrics.items()}
        return state, means | {f"{name}/": runs for name, runs in metrics.items()}

    def batches(part: int = 0, parts: int = 1) -> grain.IterDataset:
        share = len(singles) // parts
        return Stacked([task.batches() for task in singles[part * share : (part + 1) * share]])

    def evaluate(state: TrainState) -> dict[str, float]:
        state = on_one_device(state)
        found = [task.evaluate(unstack(state, i)) for i, task in enumerate(singles)]
        runs = {name: [own[name] for own in found] for name in found[0]}
        alone = {f"{name}/{i}": x for name, own in runs.items() for i, x in enumerate(own)}
        return {name: float(np.mean(own)) for name, own in runs.items()} | alone

    return Task(
        init=init,
        step=step,
        batches=batches,
        evaluate=evaluate,
        batch_spec=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(singles), *leaf.shape), leaf.dtype),
            singles[0].batch_spec,
        ),
    )


def unstack(state: PyTree, run: int) -> PyTree:
    """The state of one run on one device, as it would be had the run trained alone."""
    return _take(on_one_device(state), run)


def on_one_device(state: PyTree) -> PyTree:
    """A copy of a state on this process's first device; the state itself if that is where it is."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.device_put(local_copy(state), place)


@jax.jit
def _take(state: PyTree, run: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[run], state)


def differences(configs: Sequence[Any]) -> Values:
    """The values in which configs differ, one a run, with those of `seed` always among them.

    Args:
      configs: Configs of one recipe.

    Returns:
      The values by dotted key: seeds as uint32, floats weakly typed as Python's are.

    Raises:
      UserError: There is no config, two differ in something else than `seed` and floats, or a seed
        is not below `SEEDS`.
    """
    if not configs:
        raise UserError("configs is empty, expected one config a run")
    flat = [flatten(config.to_dict()) for config in configs]
    for config in flat:
        if not 0 <= config[SEED] < SEEDS:
            raise UserError(
                f"a run's seed is {config[SEED]}, expected 0 to {SEEDS - 1}; where a recipe trains "
                "several seeds it is config.seed times their number"
            )
    absent = "(absent)"
    values: Values = {}
    for key in sorted(set().union(*flat)):
        own = [config.get(key, absent) for config in flat]
        if key != SEED and all(value == own[0] for value in own):
            continue
        if key != SEED and not all(isinstance(value, float) for value in own):
            other = next(value for value in own if value != own[0])
            raise UserError(
                f"{key} is {own[0]!r} in one config and {other!r} in another; expected configs of "
                "one program, which differ in seed and in floats only"
            )
        dtype = jnp.uint32 if key == SEED else None
        values[key] = jnp.stack([jnp.asarray(value, dtype) for value in own])
    return values


def replaced(config: Any, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with other values, which may be arrays, of dotted keys."""
    changed = config.to_dict()
    for key, value in values.items():
        *path, name = key.split(".")
        reduce(getitem, path, changed)[name] = value
    return ConfigDict(changed)


def each(run: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Maps a function over runs: they are shared out among devices, on each of which they are one.

    Args:
      run: Function of one run's arrays.

    Returns:
      The function of arrays with a leading axis of runs.
    """

    def of_device(*args: PyTree) -> PyTree:
        # A run lies on one device whole: nothing inside it is to be split further.
        with nn.logical_axis_rules(()):
            # XLA's CPU backend runs convolutions with a kernel a run as grouped ones, slowly.
            if platform() == "cpu":
                return jax.lax.map(lambda own: run(*own), args)
            return jax.vmap(run)(*args)

    def mapped(*args: PyTree) -> PyTree:
        axes = batch_axes()
        if not axes:
            return of_device(*args)
        spec = PartitionSpec(axes)
        return jax.shard_map(of_device, in_specs=spec, out_specs=spec, check_vma=False)(*args)

    return mapped


def platform() -> str:
    """Names the platform of the mesh in use, such as "tpu"; without one, that of JAX's devices.

    Unlike `jax.lax.platform_dependent` it spares tracing what the other platforms would run.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def stack(batches: Sequence[PyTree]) -> PyTree:
    """Batches of several runs, with a leading axis of runs."""
    return jax.tree.map(lambda *own: np.stack(own), *batches)


class Stacked(grain.IterDataset):
    """Batches of several runs, made one; its position is the number of the next batch.

    Args:
      runs: Batches of each.
      merge: What is made of one batch of each; they are stacked by default.
    """

    def __init__(
        self,
        runs: Sequence[grain.IterDataset],
        merge: Callable[[Sequence[PyTree]], PyTree] = stack,
    ) -> None:
        super().__init__(runs)
        self._merge = merge

    def __iter__(self) -> grain.DatasetIterator:
        return _StackedIterator([iter(run) for run in self._parents], self._merge)


class _StackedIterator(grain.DatasetIterator):
    def __init__(
        self, runs: Sequence[grain.DatasetIterator], merge: Callable[[Sequence[PyTree]], PyTree]
    ) -> None:
        super().__init__(runs)
        self._runs, self._merge = runs, merge

    def __next__(self) -> PyTree:
        return self._merge([next(run) for run in self._runs])

    def get_state(self) -> dict[str, Any]:
        return self._runs[0].get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        for run in self._runs:
            run.set_state(state)


def _box(leaf: Array) -> nn.LogicallyPartitioned:
    """Names the leading axis so that runs are split as the rows of a batch are."""
    return nn.LogicallyPartitioned(leaf, ("batch",) + (None,) * (leaf.ndim - 1))


def _blame(
    task_of: TaskOf, config: Any, own: Values, call: Callable[..., Any], args: tuple[Any, ...]
) -> UserError | None:
    """The error that names the key which cannot be an array; None where it is not for arrays."""

    def fails(values: Mapping[str, Any]) -> Exception | None:
        try:
            jax.eval_shape(lambda: call(task_of(replaced(config, values)), *args))
        except (TypeError, ValueError) as error:
            return error
        return None

    if fails({}):
        return None
    for key, value in own.items():
        error = fails({key: value})
        if error:
            reason = str(error).splitlines()[0]
            return UserError(
                f"{key} cannot differ among runs of one program, which needs its value to be built "
                f"({reason}); expected the same {key} in all configs"
            )
    return None


def pretrain_many(
    task_of: TaskOf, config: Any, run: RunDirectory, seeds: Sequence[int]
) -> Iterator[dict[str, float]]:
    """Trains one config with several seeds at once and judges each as `pretrain` judges one.

    Args:
      task_of: `task` of a recipe that learns features of images.
      config: The config.
      run: Directory of all the runs.
      seeds: One seed a run.

    Yields:
      Metrics of each seed's run, see `ImageEvaluator.compare`.

    Raises:
      UserError: There is no seed, one stands twice or is not below `SEEDS`, or the directory holds
        runs of other seeds.
    """
    if not 0 < len(set(seeds)) == len(seeds):
        raise UserError(f"seeds is {list(seeds)}, expected distinct seeds, at least one")
    task = many(task_of, [replaced(config, {SEED: seed}) for seed in seeds])
    _keep_seeds(run, [int(seed) for seed in seeds])
    state, start = on_one_device(train(config, run, task)), initial_state(task, seed=0)
    evaluator = ImageEvaluator(build_encoder(config), config)
    for i, seed in enumerate(seeds):
        evaluator.seed = seed
        trained, untrained = (
            evaluator.features(unstack(own, i).variables) for own in (state, start)
        )
        yield evaluator.compare(trained, untrained)


def _keep_seeds(run: RunDirectory, seeds: list[int]) -> None:
    """Writes the seeds into a directory, or compares them with those of the runs that it holds."""
    file = run.path / KEPT_SEEDS
    if not file.exists():
        if is_primary():
            write_json(file, seeds)
    elif (there := json.loads(file.read_text())) != seeds:
        raise UserError(
            f"{run.path} holds runs of the seeds {there}, expected {seeds}; give another directory"
        )
