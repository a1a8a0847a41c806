"""Kill it, fill its disk, damage its files and start it again: the result is that of one run.

Bit for bit. `python -m tests.system.kills` kills more often than the tests do.
"""

import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.contrastive import simclr
from rml.data import batches, load
from rml.errors import UserError
from rml.training import RunDirectory
from tests.system import tiny_digits
from tests.system.kills import (
    ARGS,
    STEPS,
    assert_same,
    being_saved,
    compiling,
    kill_at_random,
    lines,
    steps_saved,
    together,
    wait_for_step,
    wait_until,
)

EVALUATION = 60


@pytest.fixture(scope="module")
def whole(fork, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    process = fork("-m", "experiments.run", *ARGS, f"--workdir={directory}")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return directory


@pytest.mark.slow
def test_a_run_that_was_killed_stopped_and_damaged_equals_one_that_was_not(whole, start, tmp_path):
    parts = tmp_path / "parts"
    halves, _ = kill_at_random(start, parts, kills=4, last=20, seed=5)
    assert halves, "no kill came while a checkpoint was written"
    assert not (parts / "summary.json").exists()
    stop_by_signals(start, parts)
    saved = fill_the_disk_and_change_a_byte(start, parts)
    stop_while_it_draws(start, parts, saved)

    process = start(*ARGS, f"--workdir={parts}")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"continuing after step {STEPS}" in output
    assert not being_saved(parts)
    assert_same(parts, whole)


def stop_by_signals(start, parts: Path) -> None:
    """SIGTERM while the run compiles, saves and evaluates; Ctrl-C in a step."""

    def saving(process) -> None:
        wait_until(process, lambda: being_saved(parts))

    def evaluating(process) -> None:
        wait_for_step(process, parts, EVALUATION)
        assert lines(parts)[-1].keys() == lines(parts)[0].keys()  # training's, not evaluation's

    def in_a_step(process) -> None:
        wait_for_step(process, parts, EVALUATION + 3)

    least = (steps_saved(parts) or [0])[-1]
    for moment, signum, first, last in (
        (compiling, signal.SIGTERM, least, least),
        (saving, signal.SIGTERM, least + 1, EVALUATION - 1),
        (evaluating, signal.SIGTERM, EVALUATION, EVALUATION),
        (in_a_step, signal.SIGINT, EVALUATION + 3, STEPS - 1),
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


def fill_the_disk_and_change_a_byte(start, parts: Path) -> int:
    """Each ends in one line, or gives way to the checkpoint before; the newest step is kept."""

    def ended(process) -> tuple[list[int], str]:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 1, output
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert "cannot be written to" in errors[0]
        assert "Traceback" not in output
        return steps_saved(parts), output

    before = steps_saved(parts)[-1]
    process = start(*ARGS, f"--workdir={parts}")
    compiling(process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    kept, _ = ended(process)
    assert len(kept) > 1
    assert kept[-1] >= before

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
    return after[-1]


def stop_while_it_draws(start, parts: Path, saved: int) -> None:
    process = start(*ARGS, f"--workdir={parts}")
    wait_until(process, lambda: (parts / "figures").exists())
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"continuing after step {saved}" in output
    assert "interrupted; continue from the last checkpoint, if any, with:\n  python -m" in output


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
        processes = together(start, 2, *ARGS, f"--workdir={both}")
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
def test_an_image_that_makes_the_loss_infinite_stops_the_run_at_its_batch(tmp_path):
    images = np.random.default_rng(0).uniform(0, 1, (96, 8, 8, 1)).astype(np.float32)
    images[41, 3, 3] = 3e38  # finite, or it would not be read
    arrays = {"image_train": images, "image_test": images[:32]}
    labels = {"label_train": np.arange(96) % 2, "label_test": np.arange(32) % 2}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    name = f"npz:{tmp_path / 'x.npz'}"
    config = tiny_digits.get_config()
    config.update_from_flattened_dict({
        "data.name": name, "data.image_dtype": "float32", "train.steps": 50,
        "train.batch_size": 16, "train.log_every": 20, "train.checkpoint_every": 1,
        "optimizer.warmup_steps": 0, "augment.order": (),
    })  # fmt: skip
    source = load(name, "train")
    found = [b["image"].max() > 1 for b in batches(source, batch_size=16, seed=0, repeat=False)]
    stop = f"loss is nan at step {found.index(True) + 1} \\(batch {found.index(True)}\\)"
    with pytest.raises(UserError, match=stop):
        simclr.run(config, RunDirectory(tmp_path / "run", config.to_dict()))
