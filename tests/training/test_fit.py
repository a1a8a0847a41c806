"""The engine: what training must give whatever interrupts it."""

import dataclasses
import json
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from rml.errors import UserError
from rml.training import (
    CompiledTask,
    Interrupted,
    MetricsWriter,
    NonFiniteLoss,
    Progress,
    RunDirectory,
    fit,
    initial_state,
    make_mesh,
    read_metrics,
)
from rml.training.checkpoint import saved_config, steps_saved
from rml.training.config_file import extended_from
from rml.training.digests import DIGESTS
from rml.training.fit import _SyncPoints
from tests.training.conftest import Batches

CONFIG = {"experiment": "toy", "train": {"steps": 40}}


def untimed(run):
    return [{k: v for k, v in line.items() if k != "time"} for line in
            read_metrics(run.path / "metrics.jsonl")]  # fmt: skip


def open_run(path):
    return RunDirectory(path, CONFIG)


class StopAt(Progress):
    """Sends this process a real signal when a step is reached."""

    def __init__(self, step, signum):
        super().__init__(quiet=True)
        self.at, self.signum = step, signum

    def advance(self, step):
        if step == self.at:
            os.kill(os.getpid(), self.signum)


@pytest.mark.slow
def test_training_lowers_the_loss_and_writes_what_it_measured(make_task, tmp_path):
    run = open_run(tmp_path)
    state = fit(make_task(), run, steps=40, log_every=10, eval_every=20)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert list(losses) == [10, 20, 30, 40]
    assert losses[40] < 0.6 * losses[10]
    evaluations = {line["step"]: line["eval/norm"] for line in lines if "eval/norm" in line}
    assert list(evaluations) == [20, 40]
    assert evaluations[40] == pytest.approx(
        np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(state.params))), rel=1e-5
    )
    assert state.step == 40


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signalled_run_continues_bit_for_bit(make_task, tmp_path, signum):
    options = dict(steps=40, log_every=7, eval_every=13, seed=3)
    task = make_task(ema_decay=0.9, accumulate=3, clip_norm=0.5)
    whole = open_run(tmp_path / "whole")
    expected = fit(task, whole, **options)

    parts = open_run(tmp_path / "parts")
    for stop in (5, 22):
        with pytest.raises(Interrupted) as caught:
            fit(task, parts, **options, progress=StopAt(stop, signum))
        assert caught.value.step == stop
        assert caught.value.signum == signum
    state = fit(task, parts, **options)
    chex.assert_trees_all_equal(
        jax.tree.map(jax.random.key_data, state.key), jax.random.key_data(expected.key)
    )
    chex.assert_trees_all_equal(state.replace(key=0), expected.replace(key=0))
    assert untimed(parts) == untimed(whole)
    times = [line["time"] for line in read_metrics(parts.path / "metrics.jsonl")]
    assert times == sorted(times)


@pytest.mark.slow
def test_a_signal_after_the_last_step_stops_before_what_follows(make_task, tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(Interrupted, match="SIGTERM: saved at step 40"):
        fit(make_task(), run, steps=40, progress=StopAt(40, signal.SIGTERM))
    assert fit(make_task(), run, steps=40).step == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "checkpoint_every", "step"),
    [
        (ValueError, 0, 8),
        (ValueError, 5, 8),
        (ValueError, 0, 12),
        # What ends the process cannot be caught: where both are due, the state is saved before.
        (SystemExit, 4, 8),
        (SystemExit, 0, 12),
    ],
)
def test_a_step_whose_evaluation_fails_is_saved_and_evaluated_by_the_next_start(
    make_task, tmp_path, caplog, error, checkpoint_every, step
):
    options = dict(steps=12, log_every=3, eval_every=4, checkpoint_every=checkpoint_every)
    task, whole, parts = make_task(12), open_run(tmp_path / "whole"), open_run(tmp_path / "parts")
    expected = fit(task, whole, **options)

    def evaluate(state):
        if state.step == step:
            raise error("no memory is left")
        return task.evaluate(state)

    with pytest.raises(error, match="no memory is left"):
        fit(dataclasses.replace(task, evaluate=evaluate), parts, **options)
    assert steps_saved(parts.checkpoints)[0] == step
    assert untimed(parts) == [
        line for line in untimed(whole) if line["step"] < step or
        (line["step"] == step and "eval/norm" not in line)
    ]  # fmt: skip
    state = fit(task, parts, **options)
    chex.assert_trees_all_equal(state.replace(key=0), expected.replace(key=0))
    assert untimed(parts) == untimed(whole)
    slow = "Waiting for previous save"  # said of a slow disk
    assert not [one for one in caplog.messages if not one.startswith(slow)]


@pytest.mark.slow
def test_lines_of_training_have_the_time_of_their_step(make_task, tmp_path, monkeypatch):
    """They are written a window later, when reading them does not wait."""
    clock = SimpleNamespace(now=0.0)

    class Clock(Progress):
        def advance(self, step):
            clock.now = 2.0 * step

    timer = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(sys.modules[fit.__module__], "time", timer)
    fit(make_task(), open_run(tmp_path), steps=12, log_every=5, progress=Clock(quiet=True))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["time"]) for line in lines] == [(5, 8.0), (10, 18.0), (12, 24.0)]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(make_task, tmp_path):
    run = open_run(tmp_path)
    first = fit(make_task(), run, steps=40)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = fit(make_task(), run, steps=40)
    chex.assert_trees_all_equal(first.params, again.params)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_start_that_saves_a_checkpoint_is_named_by_its_commit(make_task, tmp_path):
    run = RunDirectory(tmp_path, CONFIG, commit="one")
    with pytest.raises(Interrupted):
        fit(make_task(), run, steps=20, progress=StopAt(7, signal.SIGTERM))
    run.close()
    RunDirectory(tmp_path, CONFIG, commit="two").close()  # it trains nothing
    run = RunDirectory(tmp_path, CONFIG, commit="three")
    fit(make_task(), run, steps=20)
    assert run.write_summary(metrics={}, claims=[], seconds=1.0)["commit"] == "one, three"


@pytest.mark.slow
def test_a_finished_run_that_is_given_more_steps_trains_on(make_task, tmp_path):
    """Where the learning rate is constant, it becomes what it had been with them from the start."""

    def train(name, steps, evaluation=1):
        config = {"train": {"steps": steps}, "evaluation": {"k": evaluation}}
        run = RunDirectory(tmp_path / name, config)
        task = make_task(steps, schedule="constant")
        state = fit(task, run, steps=steps, log_every=4, eval_every=6)
        run.write_summary(metrics={}, claims=[], seconds=1.0)
        run.close()
        return run, state

    _, expected = train("whole", 20)
    train("parts", 12)
    run, state = train("parts", 20, evaluation=2)
    chex.assert_trees_all_equal(state.replace(key=0), expected.replace(key=0))
    assert untimed(run) == untimed(
        RunDirectory(tmp_path / "whole", run.config | {"evaluation": {}})
    )
    assert extended_from(run.path, run.config) == 12
    with pytest.raises(UserError, match=r"train\.steps: 20 there, 12 now"):
        train("parts", 12)


@pytest.mark.slow
def test_what_is_missing_is_said_and_the_run_goes_on(make_task, tmp_path, caplog):
    """The config comes from a checkpoint; metrics that are lost leave a gap."""
    run = open_run(tmp_path)
    with pytest.raises(Interrupted):
        fit(make_task(), run, steps=40, log_every=2, checkpoint_every=4,
            progress=StopAt(10, signal.SIGTERM))  # fmt: skip
    run.close()
    config, metrics = tmp_path / "config.json", tmp_path / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    for content, reason in ((None, "is missing"), ("{", "is not readable as JSON")):
        caplog.clear()
        config.unlink()
        if content:
            config.write_text(content)
        run = open_run(tmp_path)
        assert caplog.messages == [
            f"{config} {reason}; it is recovered from the checkpoint of step 10"
        ]
        assert json.loads(config.read_text()) == CONFIG
        run.close()
    config.unlink()
    with pytest.raises(UserError, match=r"\n  experiment: 'toy' there, 'other' now$"):
        RunDirectory(tmp_path, CONFIG | {"experiment": "other"})
    caplog.clear()
    metrics.write_text("".join([*lines[:1], *lines[3:]]) + '{"step": 1')
    fit(make_task(), open_run(tmp_path), steps=40, log_every=2)
    assert caplog.messages == [
        f"the last line of {metrics} is cut short (10 bytes) and removed; the run continues after "
        "step 10",
        f"{metrics} lacks 2 of the 5 lines of train/ metrics up to step 10 (the first of step 4); "
        "curves have a gap there, the training does not",
    ]
    (tmp_path / "config.json").unlink()
    metadata = tmp_path / "checkpoints" / "40" / "config" / "metadata"
    metadata.write_text(metadata.read_text().replace("toy", "sin"))
    assert saved_config(tmp_path / "checkpoints") == (10, CONFIG)


@pytest.mark.slow
def test_what_a_power_cut_must_leave_is_on_the_disk_in_this_order(make_task, tmp_path, monkeypatch):
    """No name is given to a file, and no file removed, before what it relies on is synced."""
    events = []

    def record(module, name, describe):
        call = getattr(module, name)

        def recorded(*args, **options):
            found = describe(*args)
            result = call(*args, **options)
            events.append((name, *found))
            return result

        monkeypatch.setattr(module, name, recorded)

    record(os, "fsync", lambda descriptor: [os.readlink(f"/proc/self/fd/{descriptor}")])
    record(os, "replace", lambda old, new: [str(old), str(new)])
    record(os, "rename", lambda old, new: [str(old), str(new)])
    record(os, "rmdir", lambda path, **_: [str(path)])
    run = RunDirectory(tmp_path / "new" / "run", CONFIG)
    fit(make_task(), run, steps=3, log_every=1, checkpoint_every=1, keep_checkpoints=1)
    run.write_summary(metrics={}, claims=[], seconds=1.0)

    def synced(path, *, first=0, last=None):
        return ("fsync", str(path)) in events[first:last]

    assert synced(tmp_path)
    assert synced(tmp_path / "new")
    named = {event[2]: at for at, event in enumerate(events) if event[0] in ("replace", "rename")}
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        at = named[str(run.path / name)]
        assert synced(run.path / f"{name}.partial", last=at)
        assert synced(run.path, first=at)
    for step in (1, 2, 3):
        checkpoint = run.checkpoints / str(step)
        at = named[str(checkpoint)]
        partial = run.checkpoints / events[at][1]
        digests = named[str(partial / DIGESTS)]
        assert events[:digests].count(("fsync", str(run.path / "metrics.jsonl"))) >= step
        assert synced(partial / f"{DIGESTS}.partial", last=digests)
        assert synced(partial, first=digests, last=at)
        assert events[at + 1] == ("fsync", str(run.checkpoints))
        if step < 3:
            removed = events.index(("rmdir", str(checkpoint)))
            assert removed > named[str(run.checkpoints / str(step + 1))] + 1
    files = [path.relative_to(checkpoint) for path in checkpoint.glob("*/**/*")]
    assert len(files) > 10
    assert all(synced(partial / file, last=digests) for file in files)
    assert [p.name for p in run.checkpoints.iterdir()] == ["3"]


@pytest.mark.slow
def test_handlers_are_given_back(make_task, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(make_task(), open_run(tmp_path), steps=3)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_a_nan_in_the_data_stops_the_run_at_its_step(make_task, tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 18 \(batch 17\)") as caught:
        fit(make_task(poison=17), run, steps=40, log_every=10, checkpoint_every=5)
    assert caught.value.step == 18
    assert json.loads((tmp_path / "failure.json").read_text()) == {
        "step": 18, "message": str(caught.value), "commit": "unknown"
    }  # fmt: skip
    run.close()
    run = open_run(tmp_path)
    assert not (tmp_path / "failure.json").exists()
    assert "step 15" in str(caught.value)
    # What is saved is from before the damage.
    with pytest.raises(Interrupted):
        fit(make_task(), run, steps=40, progress=StopAt(16, signal.SIGTERM))
    saved = sorted(int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit())
    assert saved[-1] == 16


@pytest.mark.slow
def test_data_that_end_too_early_are_an_error_after_what_was_trained_is_saved(make_task, tmp_path):
    task = make_task()
    short = grain.MapDataset.source(Batches(None)).seed(0)[:6]
    ending = dataclasses.replace(task, batches=lambda part, parts: short.to_iter_dataset())
    for _ in range(2):  # a second start finds no more data
        run = open_run(tmp_path)
        with pytest.raises(
            UserError, match="the data end after 6 of 9 steps, whose state is saved"
        ):
            fit(ending, run, steps=9)
        assert steps_saved(run.checkpoints) == [6]
        run.close()
    continued = fit(task, open_run(tmp_path), steps=9)
    whole = fit(task, open_run(tmp_path / "whole"), steps=9)
    chex.assert_trees_all_equal(continued.params, whole.params)


@pytest.mark.slow
def test_parameters_that_an_update_broke_are_not_saved(make_task, tmp_path):
    task = make_task()

    def step(state, batch):  # the loss of a step is that before its update
        after, metrics = task.step(state, batch)
        broken = jnp.where(state.step == 9, jnp.nan, 1.0)
        return after.replace(params=jax.tree.map(lambda x: x * broken, after.params)), metrics

    run = open_run(tmp_path)
    said = r"parameters are not finite after the update at step 10 \(batch 9\); .*step 5 in"
    with pytest.raises(NonFiniteLoss, match=said):
        fit(dataclasses.replace(task, step=step), run, steps=20, checkpoint_every=5)
    assert [p.name for p in run.checkpoints.iterdir() if p.name.isdigit()] == ["5"]
    run.close()
    fit(task, open_run(tmp_path), steps=20)


def test_a_checkpoint_is_kept_at_least(make_task, tmp_path):
    with pytest.raises(UserError, match="keep_checkpoints is 0, expected at least 1"):
        fit(make_task(), open_run(tmp_path), steps=5, keep_checkpoints=0)


def test_points_at_which_processes_agree_rise_from_run_to_run(monkeypatch):
    """JAX forgets a signal where a later run asks at a smaller number than an earlier one."""
    points, asked = _SyncPoints(), []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda point: bool(asked.append(point))
    )
    for steps in ((0, 1, 2), (0, 1), (5, 6)):
        points.begin()
        for step in steps:
            points.reached(step)
    assert asked == sorted(set(asked))


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_task, tmp_path, caplog):
    whole = fit(make_task(), open_run(tmp_path / "whole"), steps=40)
    run = open_run(tmp_path / "run")
    with pytest.raises(Interrupted):
        fit(make_task(), run, steps=40, checkpoint_every=8, progress=StopAt(20, signal.SIGTERM))
    for file in (run.checkpoints / "20" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    state = fit(make_task(), run, steps=40)
    assert "checkpoint of step 20" in caplog.text
    chex.assert_trees_all_equal(state.params, whole.params)
    assert (run.path / "damaged-checkpoint-20").is_dir()


@pytest.mark.slow
def test_no_readable_checkpoint_is_an_error_and_nothing_is_trained_over_it(make_task, tmp_path):
    run = open_run(tmp_path)
    fit(make_task(), run, steps=10)
    for file in run.checkpoints.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="can be read"):
        fit(make_task(), run, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("summary", ["whole", "damaged", "lost"])
def test_a_complete_run_whose_checkpoints_are_gone_is_not_trained_anew(
    make_task, tmp_path, summary
):
    run = RunDirectory(tmp_path, CONFIG | {"evaluation": {"k": 1}})
    fit(make_task(), run, steps=10, log_every=2)
    run.figure("loss.png")
    captions = {"loss.png": "The loss."} if summary == "lost" else None
    run.write_summary(metrics={}, claims=[], seconds=1.0, captions=captions)
    run.close()
    shutil.rmtree(run.checkpoints)
    if summary == "damaged":
        (tmp_path / "summary.json").write_text("{")
    if summary == "lost":
        (tmp_path / "summary.json").unlink()
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.json")}
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    evaluation = {"k": 2 if summary == "whole" else 1}
    again = RunDirectory(tmp_path, CONFIG | {"evaluation": evaluation})
    with pytest.raises(UserError, match=f"are gone from {run.checkpoints}; put one back") as caught:
        fit(make_task(), again, steps=10, log_every=2)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    again.abandon()
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.json")} == before
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.slow
def test_a_stopped_run_without_a_checkpoint_begins_again_where_none_was_surely_saved(
    make_task, tmp_path, capsys
):
    writer = MetricsWriter(tmp_path, step=0)
    for step in (2, 4, 8):  # the checkpoint of step 4 may have been under way
        writer.write(step, float(step), {"train/loss": 1.0})
    options = dict(steps=10, log_every=2, progress=Progress())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    run = open_run(tmp_path)
    with pytest.raises(UserError, match="are gone"):
        fit(make_task(), run, checkpoint_every=3, **options)
    assert fit(make_task(), run, checkpoint_every=4, **options).step == 10
    said = "no checkpoint was saved up to step 8; training begins again\n"
    assert said in capsys.readouterr().out
    writer.close()


def test_the_step_reuses_the_memory_of_the_state(make_task):
    compiled = CompiledTask(make_task(), make_mesh())
    state = compiled.init()
    batch = next(iter(make_task().batches()))
    leaves = jax.tree.leaves(state.params)
    compiled.step(state, jax.device_put(batch, compiled.batch_shardings))
    assert all(leaf.is_deleted() for leaf in leaves)
    aliased = compiled.step.memory_analysis().alias_size_in_bytes
    assert aliased >= sum(leaf.nbytes for leaf in leaves) * 3  # parameters and two moments


@pytest.mark.slow
def test_the_step_depends_on_seed_and_step_alone(make_task):
    task = make_task()
    compiled = CompiledTask(task, make_mesh(), seed=1)
    batch = next(iter(task.batches()))

    def losses(seed):
        state = CompiledTask(task, make_mesh(), seed=seed).init()
        _, first = compiled.step(state, batch)
        return float(first["loss"])

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


@pytest.mark.slow
def test_accumulated_gradients_equal_one_large_batch(make_task):
    """Two batches an update move SGD as the mean of their gradients does."""
    options = dict(name="sgd", momentum=0.0, schedule="constant", learning_rate=0.1)
    one, two = make_task(**options), make_task(**options, accumulate=2)
    batches = iter(one.batches())
    first, second = next(batches), next(batches)

    def run(task, *given):
        compiled = CompiledTask(task, make_mesh())
        state = compiled.init()
        start = jax.tree.map(np.array, state.params)
        for batch in given:
            state, _ = compiled.step(state, batch)
        return start, jax.tree.map(np.array, state.params)

    start, after_two = run(two, first, second)
    _, after_one = run(two, first)
    chex.assert_trees_all_equal(start, after_one)
    # The noise of step t is a function of t, so take each batch at its own step.
    compiled = CompiledTask(one, make_mesh())
    moves = []
    for step, batch in enumerate((first, second)):
        state = compiled.init()
        state = state.replace(step=jnp.full((), step, jnp.int32))
        begin = jax.tree.map(np.array, state.params)
        state, _ = compiled.step(state, batch)
        moves.append(jax.tree.map(lambda a, b: np.array(a) - b, state.params, begin))
    expected = jax.tree.map(lambda s, a, b: s + (a + b) / 2, start, *moves)
    chex.assert_trees_all_close(after_two, expected, atol=1e-6)


@pytest.mark.slow
def test_moving_average_is_what_is_evaluated(make_task, tmp_path):
    state = fit(make_task(ema_decay=0.99), open_run(tmp_path), steps=20)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    average = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(state.ema_params)))
    assert last["eval/norm"] == pytest.approx(average, rel=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.ema_params, state.params, rtol=1e-4)


def test_steps_must_be_positive(make_task, tmp_path):
    with pytest.raises(UserError, match=r"train\.steps is 0"):
        fit(make_task(), open_run(tmp_path), steps=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_would_be_taken_for_another_is_an_error(make_task, tmp_path, seed):
    task, said = make_task(), f"seed is {seed}, expected a whole number from 0 to 4294967295"
    with pytest.raises(UserError, match=said):
        fit(task, open_run(tmp_path), steps=5, seed=seed)
    with pytest.raises(UserError, match=said):
        CompiledTask(task, make_mesh(), seed=seed)
    with pytest.raises(UserError, match=said):
        initial_state(task, seed=seed)
    initial_state(task, seed=2**32 - 1)
