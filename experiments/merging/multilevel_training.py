"""Training of the recipe on multilevel training: fits, level by level, with a count of FLOPs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.merging.multilevel_arms import ARMS, FULL, groups, phases, shares
from experiments.merging.multilevel_problems import Problem, Shape, of_shape
from rml.ops.trees import stack_trees
from rml.training import Progress, RunDirectory, Task, TrainState, initial_state, read_metrics
from rml.training.multilevel import Phase, start_of_phase

EVALUATIONS = 8
"""Evaluations of a training of the full model; of a small one half as many."""
LOSSES = {"loss": "test", "validation": "validation"}
"""Metrics of an evaluation, and the part of the data that each is a loss of."""
ORDERS = 1009
"""What is added to the seed of each further phase, which would else read the same batches again."""


class Part(NamedTuple):
    """What one phase of one run showed.

    Attributes:
      phase: The phase.
      steps: Its own steps at each evaluation [k].
      flops: Cumulative FLOPs there [k].
      losses: Test losses there [k].
      validation: Validation losses there [k].
      start: Cumulative FLOPs when it began.
      first: Test loss of every example at the first evaluation [m].
    """

    phase: Phase
    steps: Float[np.ndarray, " k"]
    flops: Float[np.ndarray, " k"]
    losses: Float[np.ndarray, " k"]
    validation: Float[np.ndarray, " k"]
    start: float
    first: Float[np.ndarray, " m"]


class Trained(NamedTuple):
    """One run of an arm.

    Attributes:
      params: Parameters at its end.
      parts: Its phases.
    """

    params: Any
    parts: tuple[Part, ...]

    def course(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Cumulative FLOPs and validation losses of all evaluations."""
        return tuple(  # type: ignore[return-value]
            np.concatenate([getattr(part, name) for part in self.parts])
            for name in ("flops", "validation")
        )


Done = dict[Any, tuple[Any, Part]]
"""By size and phase, what phases that start afresh gave, which several arms share."""


def on_host(params: Any) -> Any:
    """Parameters as arrays of NumPy, whose maps compile nothing."""
    return jax.tree.map(np.asarray, params)


def trained(
    config: Any, run: RunDirectory, problem: Problem, flops: Mapping[Shape, float]
) -> dict[tuple[str, float], Trained]:
    """Trains all arms with every learning rate; arms of the same sizes are one program.

    Args:
      config: The run's config.
      run: Its directory; each phase of each program has its own in `methods`.
      problem: What is trained.
      flops: FLOPs of a step, see `costs`.

    Returns:
      What each arm and rate gave.
    """
    programs: dict[Any, list[str]] = {}
    for name, arm in ARMS.items():
        programs.setdefault((arm.shapes, arm.begins), []).append(name)
    full = untrained(config, problem, FULL)
    found: dict[tuple[str, float], Trained] = {}
    done: Done = {}
    for (shapes, _), names in programs.items():
        runs = [(name, rate) for name in names for rate in config.cycle.rates]
        found |= _together(config, run, problem, flops, shapes, runs, full, done)
        Progress().note(f"trained {', '.join(names)}")
    return found


def untrained(config: Any, problem: Problem, shape: Shape, *, other: bool = False) -> Any:
    """First parameters of the model of a size, or those of the next seed (`other`)."""
    task = problem.task(of_shape(config, shape))
    return on_host(initial_state(task, seed=config.seed + other).params)


def _together(
    config: Any, run: RunDirectory, problem: Problem, flops: Mapping[Shape, float],
    shapes: Sequence[Shape], runs: Sequence[tuple[str, float]], full: Any, done: Done,
) -> dict[tuple[str, float], Trained]:  # fmt: skip
    """Trains runs whose phases differ in their rates alone; `done` has phases that start afresh."""
    plans = [phases(config, ARMS[name], flops, rate) for name, rate in runs]
    maps = [groups(config, ARMS[name], full) for name, _ in runs]
    # What is made small before any step is the full model untrained.
    params: list[Any] = [full] * len(runs)
    kept: list[dict[int, Any]] = [{} for _ in runs]
    parts: list[list[Part]] = [[] for _ in runs]
    spent = 0.0
    for i, own in enumerate(zip(*plans, strict=True)):
        starts = []
        for j, phase in enumerate(own):
            alpha = ARMS[runs[j][0]].alpha
            alpha = config.cycle.alpha if alpha is None else alpha
            if phase.change == "coalesce":
                kept[j][phase.level - 1] = params[j]
            if phase.change == "decoalesce" and ARMS[runs[j][0]].forgets:
                params[j] = untrained(config, problem, shapes[phase.level + 1])
            starts.append(start_of_phase(phase, params[j], kept[j], maps[j], alpha=alpha))
        shape = shapes[own[0].level]
        each, fresh = flops[shape], own[0].change == "start"
        # Runs that are equal until now train once.
        keys = [(shape, phase) if fresh else (j, phase) for j, phase in enumerate(own)]
        new = [j for j, key in enumerate(keys) if key not in done and keys.index(key) == j]
        if new:
            configs = [_of_phase(config, shape, own[j], i) for j in new]
            name = f"{runs[0][0]}_{i}"
            ended, at, losses = _fit(
                run, problem, configs, [starts[j] for j in new], name, (spent, each)
            )
            results = {
                keys[j]: (last, Part(own[j], at, spent + each * at, test, held, spent, first))
                for j, last, (test, held, first) in zip(new, ended, losses, strict=True)
            }
            done |= results if fresh else {}
        for j, key in enumerate(keys):
            params[j], part = done[key] if fresh else results[key]
            parts[j].append(part)
        spent += each * own[0].steps
    return {own: Trained(params[j], tuple(parts[j])) for j, own in enumerate(runs)}


def _of_phase(config: Any, shape: Shape, phase: Phase, number: int) -> Any:
    """The config of one phase: what begins fresh is warmed up; each reads data in its own order.

    A fresh model warms up for as many steps as the full one before it is made small; what begins
    coalesced, of a trained model or of an untrained one, does not, as in the paper.
    """
    before, small = shares(config)
    warm = min(before, phase.steps) if phase.change == "start" else 0
    between = config.train.steps // EVALUATIONS if phase.level == 0 else 2 * small // EVALUATIONS
    return replaced(
        of_shape(config, shape),
        {
            "seed": config.seed + ORDERS * number,
            "optimizer.learning_rate": phase.rate, "optimizer.warmup_steps": warm,
            "train.steps": phase.steps, "train.eval_every": max(1, between),
            "train.log_every": max(1, min(config.train.log_every, phase.steps // 4)),
            "train.checkpoint_every": phase.steps,
        },
    )  # fmt: skip


def _fit(
    run: RunDirectory, problem: Problem, configs: Sequence[Any], starts: Sequence[Any], name: str,
    flops: tuple[float, float],
) -> tuple[list[Any], Any, list[Any]]:  # fmt: skip
    """Trains one phase of several runs as one.

    Returns:
      Parameters of each run, steps of the evaluations, and of each run test and validation losses
      and the test loss of every example at the first evaluation.
    """

    def task_of(config: Any) -> Task:
        task = problem.task(config)
        return dataclasses.replace(
            task,
            evaluate=lambda state: {
                name: float(problem.losses(config, state.params, part).mean())
                for name, part in LOSSES.items()
            },
        )

    together = counted(many(task_of, configs), *flops)
    if starts[0] is not None:
        together = started(together, starts)

    def measure(_: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        def evaluate(state: TrainState) -> dict[str, float]:
            first = min(configs[0].train.eval_every, configs[0].train.steps)
            if int(np.asarray(state.step).reshape(-1)[0]) == first:
                # Kept in files, since a run that is stopped and goes on does not come here again.
                for i, config in enumerate(configs):
                    own = problem.losses(config, unstack(state, i).params, LOSSES["loss"])
                    np.save(first_losses(inner, i), own)
            return together.evaluate(state)

        kept = dataclasses.replace(together, evaluate=evaluate)
        state = on_one_device(train(configs[0], inner, kept, "eval/loss"))
        lines = read_metrics(inner.path / "metrics.jsonl")
        shown = [line for line in lines if "eval/loss" in line]
        steps = np.array([line["step"] for line in shown], float)
        losses = [
            [
                *(np.array([line[f"eval/{name}/{i}"] for line in shown]) for name in LOSSES),
                np.load(first_losses(inner, i)),
            ]
            for i in range(len(configs))
        ]
        found = {"loss": float(shown[-1]["eval/loss"]), "flops": float(shown[-1]["eval/flops"])}
        params = [on_host(unstack(state, i).params) for i in range(len(configs))]
        return found, (params, steps, losses)

    return for_each(run, [name], measure)[name][1]


def first_losses(run: RunDirectory, number: int) -> Path:
    """Names the file with losses of examples of one of several runs at the first evaluation."""
    return run.path / f"first_{number}.npy"


def counted(task: Task, before: float, each: float) -> Task:
    """The task with cumulative FLOPs among its metrics, of one run where it has several."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        state, metrics = task.step(state, batch)
        return state, metrics | {"flops": before + each * state.step.reshape(-1)[0]}

    def evaluate(state: TrainState) -> dict[str, float]:
        return task.evaluate(state) | {
            "flops": before + each * int(np.asarray(state.step).reshape(-1)[0])
        }

    return dataclasses.replace(task, step=step, evaluate=evaluate)


def started(task: Task, starts: Sequence[Any]) -> Task:
    """The task of several runs with first parameters of their own."""
    stacked = stack_trees(starts)

    def init(key: Any) -> TrainState:
        state = task.init(key)
        params = jax.tree.map(
            lambda box, own: box.replace_boxed(own), state.params, stacked,
            is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata),
        )  # fmt: skip
        return state.replace(params=params)

    return dataclasses.replace(task, init=init)
