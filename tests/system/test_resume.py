"""Kill it, fill its disk, damage its files and start it again: the result is that of one run.

Bit for bit. `RML_KILLS=20` kills more often than the tests do by themselves.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rml.data import batches, load
from rml.training.writers import read_metrics

KILLS = int(os.environ.get("RML_KILLS", "4"))
STEPS = 60
EVALUATION = 20
CONFIG = "--config=configs/contrastive/simclr_digits.py"
ARGS = (
    CONFIG,
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=32",
    "--config.model.features=32",
    "--config.optimizer.warmup_steps=10",
    "--config.train.log_every=5",
    f"--config.train.eval_every={EVALUATION}",
    "--config.train.checkpoint_every=5",
    "--config.optimizer.ema_decay=0.9",
)


def lines(directory: Path) -> list[dict]:
    """Metrics without times."""
    return [
        {k: v for k, v in line.items() if k != "time"}
        for line in read_metrics(directory / "metrics.jsonl")
    ]


def final_state(directory: Path):
    return ocp.StandardCheckpointer().restore(
        (directory / "checkpoints" / str(STEPS) / "state").absolute()
    )


def summary_metrics(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())["metrics"]


def assert_same(parts: Path, whole: Path) -> None:
    chex.assert_trees_all_equal(final_state(parts), final_state(whole))
    assert lines(parts) == lines(whole)
    assert summary_metrics(parts) == summary_metrics(whole)


def wait_until(process, condition) -> None:
    """Waits until a condition holds of a run that has not ended."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_step(process, directory: Path, step: int, *, file: int = 0) -> None:
    """Waits until a step was logged to another metrics file than the one with this number."""
    path = directory / "metrics.jsonl"

    def logged() -> bool:
        found = read_metrics(path) if number(path) != file else []
        return bool(found) and found[-1]["step"] >= step

    wait_until(process, logged)


def number(path: Path) -> int:
    """Of a file's inode: each start of a run writes a new one."""
    return path.stat().st_ino if path.exists() else 0


def steps_saved(directory: Path) -> list[int]:
    folder = directory / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def being_saved(directory: Path) -> set[str]:
    return {p.name for p in (directory / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    done = launch(*ARGS, f"--workdir={directory}")
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_one_that_was_not(whole, launch, start, tmp_path):
    parts = tmp_path / "parts"
    draw = random.Random(0)
    halves = 0
    for kill, step in enumerate(sorted(draw.sample(range(1, STEPS - 5), KILLS))):
        before = number(parts / "metrics.jsonl")
        process = start(*ARGS, f"--workdir={parts}")
        if kill % 2:  # while it saves
            leftover = being_saved(parts)
            wait_for_step(process, parts, step, file=before)
            wait_until(process, lambda seen=leftover: being_saved(parts) - seen)
        elif draw.random() < 0.8:  # in a step, an evaluation or a save
            wait_for_step(process, parts, step, file=before)
            time.sleep(draw.random() * 0.3)
        else:  # before it trains
            time.sleep(draw.random() * 5)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
        halves += number(parts / "metrics.jsonl") != before and bool(being_saved(parts))
    assert halves, "no kill came while a checkpoint was written"
    assert not (parts / "summary.json").exists()
    end = launch(*ARGS, f"--workdir={parts}")
    assert end.returncode == 0, end.stderr
    assert "continuing after step" in end.stdout
    assert not being_saved(parts)
    print(f"{KILLS} kills, {halves} of them left half a checkpoint")
    assert_same(parts, whole)


@pytest.mark.slow
def test_signals_save_and_say_how_to_continue(whole, launch, start, tmp_path):
    """SIGTERM while the run compiles, saves, evaluates and draws; Ctrl-C in a step."""
    parts = tmp_path / "parts"

    def compiling(process) -> None:
        while "compiling" not in process.stdout.readline():
            assert process.poll() is None

    def saving(process) -> None:
        wait_until(process, lambda: being_saved(parts))

    def evaluating(process) -> None:
        wait_for_step(process, parts, EVALUATION)
        assert lines(parts)[-1].keys() == lines(parts)[0].keys()  # training's, not evaluation's

    def in_a_step(process) -> None:
        wait_for_step(process, parts, EVALUATION + 7)

    for moment, signum, first, last in (
        (compiling, signal.SIGTERM, 0, 0),
        (saving, signal.SIGTERM, 5, EVALUATION - 1),
        (evaluating, signal.SIGTERM, EVALUATION, EVALUATION),
        (in_a_step, signal.SIGINT, EVALUATION + 7, STEPS - 1),
    ):
        process = start(*ARGS, f"--workdir={parts}")
        moment(process)
        process.send_signal(signum)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 128 + signum, output
        (step,) = steps_saved(parts)[-1:]
        assert first <= step <= last, (moment, step)
        assert f"{signum.name}: saved after step {step}" in output
        assert "continue with:\n  python -m experiments.run --config=" in output
        assert "Traceback" not in output

    process = start(*ARGS, f"--workdir={parts}")
    wait_until(process, lambda: (parts / "figures").exists())
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "interrupted; continue from the last checkpoint with:\n  python -m" in output
    end = launch(*ARGS, f"--workdir={parts}")
    assert end.returncode == 0, end.stderr
    assert_same(parts, whole)


@pytest.mark.slow
def test_a_full_disk_a_changed_byte_and_a_locked_directory(whole, start, launch, tmp_path):
    """Each ends in one line, or gives way to the checkpoint before; nothing is lost."""
    parts = tmp_path / "parts"

    def ended(process) -> tuple[list[int], str]:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 1, output
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert "cannot be written to" in errors[0]
        assert "Traceback" not in output
        return steps_saved(parts), output

    process = start(*ARGS, f"--workdir={parts}")
    wait_until(process, lambda: len(steps_saved(parts)) > 1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    kept, _ = ended(process)
    assert len(kept) > 1

    newest = parts / "checkpoints" / str(kept[-1])
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    process = start(*ARGS, f"--workdir={parts}", obedient=True)
    wait_until(process, lambda: (steps_saved(parts) or [0])[-1] > kept[-1])
    (parts / "checkpoints").chmod(0o555)
    after, output = ended(process)
    (parts / "checkpoints").chmod(0o755)
    changed = f"checkpoint of step {kept[-1]} in .* has changed since it was written"
    assert re.search(f"^warning: {changed}", output, re.MULTILINE), output
    assert f"continuing after step {kept[-2]}" in output
    assert after[-1] > kept[-1]
    assert (parts / f"damaged-checkpoint-{kept[-1]}").is_dir()

    end = launch(*ARGS, f"--workdir={parts}")
    assert end.returncode == 0, end.stderr
    assert f"continuing after step {after[-1]}" in end.stdout
    assert_same(parts, whole)


@pytest.mark.slow
def test_what_one_of_two_processes_cannot_read_ends_both_and_what_is_damaged_neither(
    whole, start, tmp_path
):
    """Each file is looked at by one of them: what it finds, the other does not know."""
    both = shutil.copytree(whole, tmp_path / "both")
    (both / "summary.json").unlink()
    kept = steps_saved(both)
    metrics = (both / "metrics.jsonl").read_bytes()

    def outputs() -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
        processes = [
            start(*ARGS, f"--workdir={both}", address, "--num_processes=2", f"--process_id={i}")
            for i in range(2)
        ]
        said = [process.communicate(timeout=120)[0] for process in processes]
        codes.append([process.returncode for process in processes])
        return said

    codes: list[list[int]] = []
    file = both / "checkpoints" / str(STEPS) / "state" / "manifest.ocdbt"
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    ends = [re.findall(r"^error: (.*)$", text, re.MULTILINE) for text in outputs()]
    name = f"checkpoint of step {STEPS} in {both / 'checkpoints'} cannot be read"
    here, elsewhere = sorted((end for (end,) in ends), key=lambda end: "by another" in end)
    assert here.startswith(f"{name} now: {file}: Is a directory; it stays where it is")
    assert elsewhere == f"{name} by another process, whose message says why"
    assert codes == [[1, 1]]
    assert steps_saved(both) == kept
    assert not list(both.glob("damaged-*"))
    assert (both / "metrics.jsonl").read_bytes() == metrics

    file.rmdir()
    file.write_bytes(content[:-1])
    said = outputs()
    assert codes[1:] == [[0, 0]], said
    assert f"continuing after step {kept[-2]}" in said[0]
    assert [p.name for p in both.glob("damaged-*")] == [f"damaged-checkpoint-{STEPS}"]
    assert steps_saved(both) == kept


@pytest.mark.slow
def test_an_image_that_makes_the_loss_infinite_stops_the_run_at_its_batch(launch, tmp_path):
    images = np.random.default_rng(0).uniform(0, 1, (96, 8, 8, 1)).astype(np.float32)
    images[41, 3, 3] = 3e38  # finite, or it would not be read
    arrays = {"image_train": images, "image_test": images[:32]}
    labels = {"label_train": np.arange(96) % 2, "label_test": np.arange(32) % 2}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    name = f"npz:{tmp_path / 'x.npz'}"
    result = launch(
        CONFIG, f"--config.data.name={name}", "--config.data.image_dtype=float32",
        "--config.train.steps=50", "--config.train.batch_size=16", "--config.train.log_every=20",
        "--config.train.checkpoint_every=1", "--config.optimizer.warmup_steps=0",
        "--config.augment.order=()", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    source = load(name, "train")
    found = [b["image"].max() > 1 for b in batches(source, batch_size=16, seed=0, repeat=False)]
    assert result.returncode == 1, result.stdout
    assert f"error: loss is nan at step {found.index(True) + 1} (batch {found.index(True)})" in (
        result.stderr
    )
    assert "Traceback" not in result.stderr
