"""The training loop: one for every task, on any mesh."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rml.errors import UserError
from rml.training.checkpoint import Checkpoints, abstract_with_shardings
from rml.training.config_file import METRICS, SUMMARY, read_history
from rml.training.mesh import (
    DEFAULT_RULES,
    batch_sharding,
    check_divisible,
    make_mesh,
    place,
    use_mesh,
)
from rml.training.processes import global_arrays, is_primary, of_primary, part_of_batch
from rml.training.progress import Progress
from rml.training.rundir import RunDirectory
from rml.training.task import Task, TrainState, as_numbers
from rml.training.writers import MetricsWriter, read_metrics, warn_of_gaps

AHEAD = 2
WINDOW = 256
"""Steps whose metrics wait on the device at most, however seldom a line is written."""


class Interrupted(Exception):
    """A signal ended the run after its state was saved.

    Attributes:
      signum: The signal.
      step: Step that was saved.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f"{signal.Signals(signum).name}: saved at step {step}")
        self.signum, self.step = signum, step


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite, or the parameters did.

    Attributes:
      step: The step, counted from 1; its batch is the `step - 1`-th of the run.
    """

    def __init__(self, step: int, what: str, saved: int | None, directory: Any):
        where = (
            f"the last good checkpoint is step {saved} in {directory}"
            if saved
            else ("there is no checkpoint yet")
        )
        super().__init__(
            f"{what} at step {step} (batch {step - 1}); {where}; "
            "expected finite numbers: lower optimizer.learning_rate, set optimizer.clip_norm, "
            "or look at the data"
        )
        self.step = step


class CompiledTask:
    """A task compiled for a mesh: where its arrays live, its step, its first state.

    Attributes:
      shardings: A `NamedSharding` for every array of the state.
      rules: The rules by which activations lie too.
      batch_shardings: The same for the batch.
      step: Compiled `(state, batch) -> (state, metrics)`; the given state's memory is reused.
    """

    def __init__(self, task: Task, mesh: Mesh, *, rules: Any = DEFAULT_RULES, seed: int = 0):
        """Lowers and compiles the step without making data or state.

        Args:
          task: Task to train.
          mesh: Devices.
          rules: Pairs of logical axis and mesh axes.
          seed: Seed of the run's key.

        Raises:
          UserError: The seed is not in 0..2**32 - 1; a batch or parameter that the mesh does not
            divide.
        """
        self._init, self._key = task.init, _key(seed)
        # Traced without the mesh: linen makes some kernels flat and would constrain them by the
        # axes of their final shape.
        boxed = jax.eval_shape(task.init, self._key)
        abstract = nn.meta.unbox(boxed)
        self.shardings, self.rules = place(boxed, mesh, rules)
        self.abstract_state = abstract_with_shardings(abstract, self.shardings)
        self.batch_shardings = jax.tree.map(lambda _: batch_sharding(mesh), task.batch_spec)
        check_divisible(task.batch_spec, self.batch_shardings)
        batch = abstract_with_shardings(task.batch_spec, self.batch_shardings)
        with use_mesh(mesh, self.rules):
            self.lowered = jax.jit(
                task.step,
                donate_argnums=0,
                out_shardings=(self.shardings, NamedSharding(mesh, PartitionSpec())),
            ).lower(self.abstract_state, batch)
            self.step = self.lowered.compile()

    def init(self) -> TrainState:
        """Makes the first state where it lives."""
        return _made(self._init, self._key, self.shardings)


def _made(init: Callable[[Any], TrainState], key: Any, places: Any) -> TrainState:
    """Makes a first state; unboxed outside, so that `init` is traced and compiled once for all."""
    return nn.meta.unbox(jax.jit(init, out_shardings=places)(key))


def _key(seed: int) -> Any:
    """Makes the key of a run; JAX would take the seed modulo 2**32."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected a whole number from 0 to {2**32 - 1}")
    return jax.random.key(seed)


def on_devices(batches: grain.IterDataset, shardings: Any, spec: Any) -> grain.IterDataset:
    """Puts global batches on the devices, read and moved ahead of their use."""
    prefetch = grain.experimental.ThreadPrefetchIterDataset
    read = prefetch(batches, prefetch_buffer_size=4)
    moved = read.map(lambda batch: global_arrays(batch, shardings, spec))
    return prefetch(moved, prefetch_buffer_size=2)


def initial_state(task: Task, *, seed: int, mesh: Mesh | None = None) -> TrainState:
    """Makes the state that a run of this seed starts from, on one device or laid on a mesh.

    Raises:
      UserError: The seed is not in 0..2**32 - 1.
    """
    key, places = _key(seed), None
    if mesh is not None:
        places, _ = place(jax.eval_shape(task.init, key), mesh)
    return _made(task.init, key, places)


def check_never_saved(run: RunDirectory, checkpoint_every: int) -> int:
    """Refuses to train a run anew whose checkpoints are gone.

    Args:
      run: The run directory, without a checkpoint.
      checkpoint_every: Steps between checkpoints; 0 for none before the end.

    Returns:
      The last step that has metrics, 0 if none has.

    Raises:
      UserError: What else the directory holds was written after a checkpoint.
    """
    last = max((line["step"] for line in read_metrics(run.path / METRICS)), default=0)
    saved = (
        (run.path / SUMMARY).exists()  # damaged, or the run would be complete
        or (run.path / "figures" / "captions.json").exists()
        or any(kept["step"] or kept["summary"] for kept in read_history(run.path))
        # The second save waits for the first one.
        or 0 < 2 * checkpoint_every < last
    )
    if of_primary(saved):
        raise UserError(
            f"the checkpoints of this run are gone from {run.checkpoints}; put one back to "
            "continue, or give another --workdir to train from the beginning"
        )
    return last


@contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Collects SIGTERM and SIGINT instead of dying; the second one kills as usual.

    Of several processes each must stop at the same step: JAX's runtime catches their SIGTERM.
    """

    def handler(signum: int, _: Any) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield
        return
    previous = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


def fit(
    task: Task,
    run: RunDirectory,
    *,
    steps: int,
    seed: int = 0,
    mesh: Mesh | None = None,
    rules: Any = DEFAULT_RULES,
    log_every: int = 50,
    eval_every: int = 0,
    checkpoint_every: int = 0,
    keep_checkpoints: int = 2,
    progress: Progress | None = None,
) -> TrainState:
    """Trains a task in its run directory, from where the directory's newest checkpoint ends.

    A run that was interrupted and started again gives the same parameters and metrics, bit for
    bit, as one that was not.

    Args:
      task: Task to train.
      run: The run directory.
      steps: Steps to train for.
      seed: Seed of the initial parameters and of every step's key.
      mesh: Devices; all of them by default.
      rules: Pairs of logical axis and mesh axes.
      log_every: Steps between lines of training metrics; 0 for a line a step too.
      eval_every: Steps between evaluations; 0 for none before the end.
      checkpoint_every: Steps between checkpoints; 0 for none before the end.
      keep_checkpoints: Number of checkpoints that stay.
      progress: Display of the progress; none by default.

    Returns:
      The state after the last step, where it lies on the mesh.

    Raises:
      Interrupted: SIGTERM or SIGINT came; the state was saved first.
      NonFiniteLoss: The loss became NaN or infinite; the last good checkpoint stays.
      UserError: A seed that is not in 0..2**32 - 1; a batch or parameter that the mesh does not
        divide; unreadable or lost checkpoints; checkpoints or metrics that cannot be written; data
        that end before the last step, whose state is saved first.
    """
    if steps < 1:
        raise UserError(f"train.steps is {steps}, expected at least 1")
    if progress is None or not is_primary():
        progress = Progress(quiet=True)
    received: list[int] = []
    with _signals(received), ExitStack() as opened:
        mesh = make_mesh() if mesh is None else mesh
        rows = batch_sharding(mesh)
        check_divisible(task.batch_spec, jax.tree.map(lambda _: rows, task.batch_spec))
        size = jax.tree.leaves(task.batch_spec)[0].shape[0]
        batches = task.batches(*part_of_batch(rows, size))
        progress.note("compiling")
        compiled = CompiledTask(task, mesh, rules=rules, seed=seed)
        checkpoints = Checkpoints(run.checkpoints, keep=keep_checkpoints)
        opened.callback(checkpoints.close)
        iterator = iter(on_devices(batches, compiled.batch_shardings, task.batch_spec))
        opened.callback(iterator.close)
        step, state = checkpoints.restore(compiled.abstract_state, iterator)
        if state is None:
            if last := check_never_saved(run, checkpoint_every):
                progress.note(f"no checkpoint was saved up to step {last}; training begins again")
            state = compiled.init()
        else:
            progress.note(f"continuing after step {step}")
        writer = MetricsWriter(run.path, step=step, tracker=run.tracker)
        opened.callback(writer.close)
        loop = _Loop(
            task, run, compiled, checkpoints, iterator, writer, progress, received,
            steps=steps, log_every=log_every, eval_every=eval_every,
            checkpoint_every=checkpoint_every,
        )  # fmt: skip
        loop.evaluate_missing(step, state)
        if is_primary():
            warn_of_gaps(run.path / METRICS, step, train=max(log_every, 1), eval=eval_every)
        progress.start(step, steps)
        opened.callback(progress.stop)
        try:
            return loop.run(step, state)
        except NonFiniteLoss as error:
            run.write_failure(error.step, str(error))
            raise


class _SyncPoints:
    """Numbers of the points at which processes agree on a signal, rising from run to run.

    JAX answers at the point after the largest that was asked for: were a second run of a program
    to count from 0 again, it would not be told before it has as many steps as the first.
    """

    def __init__(self) -> None:
        self.first = self.last = 0

    def begin(self) -> None:
        self.first = self.last

    def reached(self, step: int) -> bool:
        point = self.first + step
        self.last = max(self.last, point + 1)
        return multihost_utils.reached_preemption_sync_point(point)


_sync = _SyncPoints()


@jax.jit
def _finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


class _Loop:
    """One run of the loop: metrics are read one window late, so that reading never waits."""

    def __init__(
        self, task: Task, run: RunDirectory, compiled: CompiledTask, checkpoints: Checkpoints,
        iterator: Any, writer: MetricsWriter, progress: Progress, received: list[int],
        *, steps: int, log_every: int, eval_every: int, checkpoint_every: int,
    ):  # fmt: skip
        self.task, self.config, self.compiled = task, run.config, compiled
        self.metrics, self.note_commit = run.path / METRICS, run.note_commit
        self.checkpoints, self.iterator = checkpoints, iterator
        self.writer, self.progress, self.received = writer, progress, received
        self.steps, self.log_every = steps, max(log_every, 1)
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        _sync.begin()
        self.pending: list[tuple[int, float, dict[str, jax.Array]]] = []
        self.started = time.perf_counter() - writer.seconds

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def run(self, step: int, state: TrainState) -> TrainState:
        while step < self.steps:
            if self.told_to_stop(step):
                self.save(step, state)
                self.checkpoints.wait()
                raise Interrupted(self.received[0], step)
            try:
                batch = next(self.iterator)
            except StopIteration:
                self.save(step, state)
                self.checkpoints.wait()
                raise UserError(
                    f"the data end after {step} of {self.steps} steps, whose state is saved; "
                    "expected batches without end (repeat=True of rml.data.batches), or fewer "
                    "train.steps"
                ) from None
            state, metrics = self.compiled.step(state, batch)
            step += 1
            for value in metrics.values():
                value.copy_to_host_async()
            self.pending.append((step, self.seconds(), metrics))
            # The host stays at most this many steps ahead: enough that the device never waits,
            # and no more batches than these are alive.
            if len(self.pending) > AHEAD:
                jax.block_until_ready(self.pending[-1 - AHEAD][2])
            self.progress.advance(step)
            if step % self.log_every == 0 or len(self.pending) >= WINDOW:
                # The newest steps are still computing: leave them for the next window.
                self.drain(keep=AHEAD)
            if self.due(step, self.checkpoint_every):
                # The state is safe before an evaluation begins, which may need too much memory.
                self.save(step, state)
            if self.due(step, self.eval_every):
                self.drain()
                self.evaluate(step, state)
        self.checkpoints.wait()
        if self.told_to_stop(step):  # while the last checkpoint was written
            raise Interrupted(self.received[0], step)
        return state

    def due(self, step: int, every: int) -> bool:
        """Tells whether to do now what is done at the end and, unless 0, every `every` steps."""
        return step == self.steps or (every > 0 and step % every == 0)

    def told_to_stop(self, step: int) -> bool:
        """Whether a signal came; of several processes all are told at the same step."""
        if jax.process_count() > 1 and _sync.reached(step):
            self.received.append(signal.SIGTERM)
        return bool(self.received)

    def drain(self, keep: int = 0) -> None:
        """Reads and writes the metrics of all steps but the newest `keep`."""
        ready, self.pending = (
            self.pending[: len(self.pending) - keep],
            self.pending[len(self.pending) - keep :],
        )
        for step, seconds, metrics in ready:
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                own = {k: v for k, v in as_numbers(metrics).items() if k.startswith("loss/")}
                parts = [name for name, value in own.items() if not math.isfinite(value)]
                named = f" ({', '.join(parts)})" if parts else ""
                raise self.broken(step, f"loss is {loss}{named}")
            if step % self.log_every == 0:
                values = {f"train/{k}": v for k, v in as_numbers(metrics).items()}
                self.writer.write(step, seconds, values)
                self.progress.show(values)

    def broken(self, step: int, what: str) -> NonFiniteLoss:
        saved = self.checkpoints
        return NonFiniteLoss(step, what, saved.latest(), saved.directory)

    def evaluate_missing(self, step: int, state: TrainState) -> None:
        """Evaluates the state of a checkpoint whose evaluation failed or was cut off."""
        if not step or not self.due(step, self.eval_every):
            return
        lines = [line for line in read_metrics(self.metrics) if line["step"] == step]
        if of_primary(not any(key.startswith("eval/") for line in lines for key in line)):
            self.evaluate(step, state)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Evaluates a state and writes what was found; if that fails, the state is saved first."""
        try:
            metrics = {f"eval/{k}": float(v) for k, v in self.task.evaluate(state).items()}
        except Exception:
            # A save waits for all processes, of which others may not have failed.
            if jax.process_count() == 1:
                self.save(step, state)
            raise
        if metrics:
            self.writer.write(step, self.seconds(), metrics)
            self.progress.show(metrics)

    def save(self, step: int, state: TrainState) -> None:
        """Saves a state whose losses were all finite, and whose parameters are."""
        self.drain()
        # The loss of a step is that before its update, which may be the one that breaks.
        if not bool(_finite(state.params)):
            raise self.broken(step, "parameters are not finite after the update")
        self.writer.sync()
        self.note_commit()
        self.checkpoints.save(step, state, self.iterator, self.config)
