"""The runs of a trial: what they cost, which of them are one program, and where each is kept."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train_on_mesh
from experiments.common.trial_table import Arm, Trial
from experiments.ranges import RANGES, check_ranges
from experiments.registry import find_experiment
from rml.errors import UserError, unknown
from rml.evaluation import program_flops
from rml.nested import flatten
from rml.training import CompiledTask, Progress, RunDirectory, Task, TrainState, make_mesh
from rml.training.durable import write_json
from rml.training.processes import is_primary
from rml.training.progress import duration

GAUGE = "gauge.json"
"""File of a run directory with what a step of each shape costs."""
COST = "cost/"
"""What the names of costs begin with among the scores of a run."""
Scores = dict[str, dict[str, list[np.ndarray]]]
"""By part and metric, the scores of every job."""


class Job(NamedTuple):
    """One run: its arm, and the config with its options and seed."""

    arm: str
    config: Any


class Work:
    """The runs of one trial in its run directory.

    Attributes:
      trial: The trial.
      costs: What a run of each arm costs: steps, seconds, parameters, floating-point operations.
      also: Further metrics, such as those of conditions.
    """

    def __init__(self, trial: Trial, run: RunDirectory, config: Any, bed: Any):
        self.trial, self.costs = trial, {}  # type: tuple[Trial, dict[str, dict[str, float]]]
        self.also: dict[str, float] = {}
        self._run, self._config, self._bed = run, config, bed
        self._known: dict[str, dict[str, np.ndarray]] = {}
        self._began, self._planned, self._done = time.perf_counter(), 0.0, 0.0

    def job(self, name: str, options: Mapping[str, Any], seed: int) -> Job:
        """The run of an arm with these options and this seed."""
        changes = {**self.trial.arms[name].changes, **options, "seed": seed}
        return Job(name, replaced(self._config, changes))

    def allowed(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether options lie in the ranges that the launcher and the recipe accept."""
        config = self.job(name, options, self._config.seed).config
        try:
            for ranges in (RANGES, getattr(find_experiment(config.experiment), "RANGES", {})):
                check_ranges(config, ranges)
        except UserError:
            return False
        return True

    def gauge(self, arms: Mapping[str, Arm], tries: Mapping[str, Sequence[Any]]) -> None:
        """Times a step of every shape of training, and counts its operations, once a trial.

        Where nothing is trained it does nothing: such runs are timed as they end.
        """
        if self.trial.fit is None or self.trial.computed:
            return
        file = self._run.path / GAUGE
        kept = json.loads(file.read_text()) if file.exists() else {}
        for name in arms:
            config = self.job(name, tries[name][0], self._config.seed).config
            shape = self._shape(config)
            if shape not in kept:
                task = self.trial.fit(config, self._bed)
                kept[shape] = _step_costs(task, config) if isinstance(task, Task) else {}
            if kept[shape]:
                steps = int(config.train.steps)
                each = {key: kept[shape][key] * steps for key in ("seconds", "gigaflops")}
                parameters = kept[shape]["parameters"]
                self.costs[name] = {"steps": steps, **each, "parameters": parameters}
        if is_primary():
            write_json(file, kept)

    def seconds(self, name: str) -> float:
        """Seconds that a run of an arm trains, 1 where nothing is known."""
        return self.costs.get(name, {}).get("seconds", 1.0)

    def plan(self, seeds: Sequence[int], tries: Mapping[str, Sequence[Any]]) -> float:
        """Seconds of all runs of tuning and measurement."""
        tuning = len(seeds[: self._config.tuning_seeds])
        return sum(
            self.seconds(name) * (len(seeds) + (tuning * len(own) if len(own) > 1 else 0))
            for name, own in tries.items()
        )

    def tell(self, seeds: Sequence[int], tries: Mapping[str, Sequence[Any]]) -> None:
        """Says before the first run how many there are, and how long they train."""
        self._planned = self.plan(seeds, tries)
        tuning = len(seeds[: self._config.tuning_seeds])
        count = sum(
            len(seeds) + (tuning * len(own) if len(own) > 1 else 0) for own in tries.values()
        )
        known = f", about {duration(self._planned)} of training" if self.costs else ""
        Progress().note(
            f"{len(tries)} arms, {len(seeds)} seeds, {count} runs{known}; judging comes on top"
        )

    def within(
        self, budget: float, seeds: list[int], tries: Mapping[str, list[Any]], *, least: int
    ) -> tuple[list[int], dict[str, list[Any]]]:
        """Cuts seeds down to `least`, then tries down to one, until the plan fits a budget.

        Raises:
          UserError: It does not fit then either, or nothing is trained whose steps can be timed.
        """
        if not self.costs:
            raise UserError("--budget needs an experiment that trains: no step could be timed")
        cut, most = dict(tries), max(map(len, tries.values()))
        while self.plan(seeds, cut) > budget:
            if len(seeds) > least:
                seeds = seeds[:-1]
            elif most > 1:
                most -= 1
                cut = {name: _middle(own, most) for name, own in tries.items()}
            else:
                needed = duration(self.plan(seeds, cut))
                raise UserError(
                    f"--budget is {duration(budget)}, expected at least {needed}: {least} seeds of "
                    f"all {len(cut)} arms train as long; name fewer --config.arms, or lower "
                    "train.steps"
                )
        return seeds, cut

    def metrics(self) -> dict[str, float]:
        """Costs of every arm, and further numbers that were noted."""
        found = {
            f"{key}_{name}": float(value)
            for name, own in self.costs.items()
            for key, value in own.items()
        }
        return found | self.also

    def scores(self, stage: str, jobs: Sequence[Job], parts: Sequence[str]) -> Scores:
        """Runs jobs and scores them on parts; what a stopped trial has is not done again.

        Nor is what an earlier stage has scored on these parts, such as a try that was chosen.
        """
        found: Scores = {part: {name: [] for name in self.trial.metrics} for part in parts}
        needed = {f"{part}/{name}" for part in parts for name in self.trial.metrics}
        done: dict[int, dict[str, np.ndarray]] = {}
        groups: dict[str, list[int]] = {}
        for i, job in enumerate(jobs):
            known = self._known.get(_written(job.config), {})
            if needed <= known.keys():
                done[i] = known
            else:
                groups.setdefault(self._shape(job.config), []).append(i)
        for number, rows in enumerate(groups.values()):
            own = [jobs[i] for i in rows]
            names = list(dict.fromkeys(job.arm for job in own))
            where = f"{stage} {number + 1} of {len(groups)}: {', '.join(names)}, {len(own)} runs"
            Progress().note(f"{where}{self._time_left()}")
            done |= dict(zip(rows, self._program(stage, own, parts), strict=True))
            for i in reversed(rows):
                self._known[_written(jobs[i].config)] = done[i]
                self.costs.setdefault(jobs[i].arm, {}).update(
                    {
                        key.removeprefix(COST): float(x)
                        for key, x in done[i].items()
                        if key.startswith(COST)
                    }
                )
            self._done += sum(self.seconds(job.arm) for job in own)
        for i in range(len(jobs)):
            for part in parts:
                for name in self.trial.metrics:
                    found[part][name].append(done[i][f"{part}/{name}"])
        return found

    def _time_left(self) -> str:
        """How long the trial has run, and about how long it goes on by what is done of its plan."""
        gone = time.perf_counter() - self._began
        if not self._done:
            return ""
        left = gone / self._done * max(self._planned - self._done, 0.0)
        return f"; {duration(gone)} gone, about {duration(left)} left"

    def _program(
        self, stage: str, jobs: Sequence[Job], parts: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """The scores of one program's runs, by part and metric."""
        text = json.dumps([json.loads(_written(job.config)) for job in jobs])
        name = f"{stage}_{jobs[0].arm}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        inner = self._run.of_method(name)
        files = [inner.path / f"scores_{i}.npz" for i in range(len(jobs))]
        if not all(file.exists() for file in files):
            state_of = self._states(jobs, inner)
            progress = Progress(unit="score")
            progress.start(0, len(jobs))
            # Runs of one seed follow one another: what a bed holds of a seed is made once.
            order = sorted(range(len(jobs)), key=lambda i: int(jobs[i].config.seed))
            for count, i in enumerate(order):
                if not files[i].exists():
                    state = state_of(i)
                    found = {
                        f"{part}/{name}": values
                        for part in parts
                        for name, values in self._score(jobs[i], state, part).items()
                    }
                    _save(files[i], found | self._further_costs(jobs[i], state))
                progress.advance(count + 1)
            progress.stop()
        inner.close()
        return [dict(np.load(file)) for file in files]

    def _states(self, jobs: Sequence[Job], inner: RunDirectory) -> Callable[[int], Any]:
        """Trains the runs of a program together, or computes each when it is asked for."""
        fit, bed = self.trial.fit, self._bed
        if fit is None:
            return lambda i: None
        first = fit(jobs[0].config, bed)
        if not isinstance(first, Task):
            return lambda i: first if i == 0 else fit(jobs[i].config, bed)
        configs = [job.config for job in jobs]
        mesh = make_mesh(configs[0].get("mesh"))
        rows = mesh.size // mesh.shape.get("model", 1)
        # Devices share runs out evenly; what is added is trained and never scored.
        configs += [configs[-1]] * (-len(configs) % rows)
        task = many(lambda config: guarded(fit(config, bed)), configs)
        states = on_one_device(train_on_mesh(configs[0], inner, task, shown=""))
        return lambda i: unstack(states, i)

    def _further_costs(self, job: Job, state: Any) -> dict[str, np.ndarray]:
        """What the recipe counts of a run beside its training."""
        if self.trial.costs is None:
            return {}
        own = self.trial.costs(job.config, self._bed, state)
        return {f"{COST}{name}": np.asarray(float(value)) for name, value in own.items()}

    def _score(self, job: Job, state: Any, part: str) -> dict[str, np.ndarray]:
        """Scores of a run by metric, each a vector of finite numbers."""
        given = self.trial.score(job.config, self._bed, state, part)
        if not isinstance(given, Mapping):
            given = {next(iter(self.trial.metrics)): given}
        if given.keys() != self.trial.metrics.keys():
            raise ValueError(f"score gives {list(given)}, expected {list(self.trial.metrics)}")
        found = {name: np.atleast_1d(np.asarray(x, np.float64)) for name, x in given.items()}
        for name, values in found.items():
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise UserError(
                    f"arm {job.arm}, seed {job.config.seed}: {name} on {part} data has shape "
                    f"{values.shape} and {int((~np.isfinite(values)).sum())} values that are not "
                    "finite, expected finite scores, one a unit"
                )
        return found

    def _shape(self, config: Any) -> str:
        """A hash of all that makes a program another one: seeds and floats are its inputs."""
        flat = flatten(config.to_dict())
        for key in self.trial.apart:
            if key not in flat:
                raise unknown("key of a trial's apart", key, flat)
        kept = {
            key: value
            for key, value in flat.items()
            if key != "seed" and (not isinstance(value, float) or key in self.trial.apart)
        }
        return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()


def guarded(task: Task) -> Task:
    """A task whose run stands still once a step's loss or parameters are not finite.

    Of several tries one may diverge; it loses by its score and does not end the others.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        after, metrics = task.step(state, batch)
        numbers = [jnp.asarray(x) for x in jax.tree.leaves((metrics, after.params))]
        floats = [x for x in numbers if jnp.issubdtype(x.dtype, jnp.floating)]
        finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in floats]))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        told = {name: jnp.where(finite, x, 0) for name, x in metrics.items()}
        return kept.replace(step=after.step), told

    return replace(task, step=step)


def _step_costs(task: Task, config: Any) -> dict[str, float]:
    """Seconds and operations of a step of one run, and the number of its parameters."""
    mesh = make_mesh(devices=jax.local_devices()[:1])
    compiled = CompiledTask(task, mesh, seed=int(config.seed))
    batch = jax.device_put(next(iter(task.batches())), compiled.batch_shardings)
    state, seconds = compiled.init(), []
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    for _ in range(3):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(compiled.step(state, batch))
        seconds.append(time.perf_counter() - started)
    flops = program_flops(task.step, compiled.abstract_state, task.batch_spec)
    return {"seconds": min(seconds), "gigaflops": flops / 1e9, "parameters": float(parameters)}


def _written(config: Any) -> str:
    """All of a run's config as one text."""
    return json.dumps(config.to_dict(), sort_keys=True, default=repr)


def _middle(tries: Sequence[Any], most: int) -> list[Any]:
    """The tries in the middle, at most so many."""
    first = max(len(tries) - most, 0) // 2
    return list(tries[first : first + most])


def _save(file: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays so that a file that is there is whole."""
    if not is_primary():
        return
    partial = file.with_name(f".{file.name}")
    kept: dict[str, Any] = dict(arrays)
    with open(partial, "wb") as out:
        np.savez(out, **kept)
    partial.replace(file)
