"""Kill it and start it again: the result is the uninterrupted one, bit for bit."""

import json
import random
import signal
import time
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp

STEPS = 120
ARGS = (
    "--config=configs/contrastive/simclr_digits.py",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=64",
    "--config.train.log_every=5",
    "--config.train.eval_every=40",
    "--config.train.checkpoint_every=10",
    "--config.optimizer.ema_decay=0.9",
)


def lines(directory: Path) -> list[dict]:
    """Metrics without times."""
    texts = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k != "time"} for t in texts]


def final_state(directory: Path):
    return ocp.StandardCheckpointer().restore(
        (directory / "checkpoints" / str(STEPS) / "state").absolute()
    )


def wait_for_step(process, directory: Path, step: int) -> bool:
    """Waits until a step was logged; False where the run ended first."""
    while process.poll() is None:
        try:
            written = (directory / "metrics.jsonl").read_text().splitlines()
            if written and json.loads(written[-1])["step"] >= step:
                return True
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.01)
    return False


def summary_metrics(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())["metrics"]


def assert_same(parts: Path, whole: Path) -> None:
    chex.assert_trees_all_equal(final_state(parts), final_state(whole))
    assert lines(parts) == lines(whole)
    assert summary_metrics(parts) == summary_metrics(whole)


def test_a_run_killed_at_arbitrary_steps_equals_one_that_was_not(launch, start, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = launch(*ARGS, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    draw = random.Random(0)
    kills = 0
    for step in sorted(draw.sample(range(1, STEPS), 4)):
        process = start(*ARGS, f"--workdir={parts}")
        if wait_for_step(process, parts, step):
            time.sleep(draw.random() * 0.3)  # anywhere: in a step, an evaluation or a save
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills >= 3, "the run was over before it could be killed"
    assert not (parts / "summary.json").exists()
    end = launch(*ARGS, f"--workdir={parts}")
    assert end.returncode == 0, end.stderr
    assert "continuing after step" in end.stdout
    assert_same(parts, whole)


def test_sigterm_and_ctrl_c_save_and_say_how_to_continue(launch, start, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(*ARGS, f"--workdir={whole}").returncode == 0
    for signum, step in ((signal.SIGTERM, 7), (signal.SIGINT, 53)):
        process = start(*ARGS, f"--workdir={parts}")
        assert wait_for_step(process, parts, step)
        process.send_signal(signum)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 128 + signum, output
        assert f"{signum.name}: saved after step" in output
        assert "continue with:\n  python -m experiments.run --config=" in output
        assert "Traceback" not in output
    end = launch(*ARGS, f"--workdir={parts}")
    assert end.returncode == 0, end.stderr
    assert_same(parts, whole)


def test_a_loss_that_is_not_finite_stops_the_run(launch, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "x.npz", image=images, label=np.arange(64) % 2)
    result = launch(
        "--config=configs/contrastive/simclr_digits.py",
        "--config.train.steps=50", "--config.train.batch_size=32", "--config.train.log_every=5",
        "--config.train.checkpoint_every=5", "--config.optimizer.warmup_steps=0",
        "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.returncode == 1
    assert "error: loss is" in result.stderr
    assert "at step" in result.stderr
    assert "Traceback" not in result.stderr
