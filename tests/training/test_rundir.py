"""Run directories: nothing that exists is overwritten, and mistakes are named."""

import json
import os
import subprocess

import pytest

from rml.errors import UserError
from rml.training import MetricsWriter, RunDirectory, read_metrics

CONFIG = {"experiment": "a.b", "seed": 0, "train": {"steps": 5, "batch_size": 8}}


def test_the_same_config_opens_again(tmp_path):
    RunDirectory(tmp_path, CONFIG).close()
    run = RunDirectory(tmp_path, CONFIG)
    assert run.resumed
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_another_config_is_refused_with_the_differing_keys(tmp_path):
    RunDirectory(tmp_path, CONFIG).close()
    before = (tmp_path / "config.json").read_bytes()
    other = {**CONFIG, "train": {"steps": 6, "lr": 0.1}}
    with pytest.raises(UserError) as caught:
        RunDirectory(tmp_path, other)
    message = str(caught.value)
    assert "train.steps: 5 there, 6 now" in message
    assert "train.lr: '(absent)' there, 0.1 now" in message
    assert "train.batch_size: 8 there" in message
    assert "seed" not in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_may_continue_on_another_mesh(tmp_path):
    RunDirectory(tmp_path / "r", {"seed": 0, "mesh": {"data": -1}}).close()
    again = RunDirectory(tmp_path / "r", {"seed": 0, "mesh": {"data": 4, "fsdp": 2}})
    assert again.resumed
    again.close()
    with pytest.raises(UserError, match=r"\n  seed: 0 there, 1 now$"):
        RunDirectory(tmp_path / "r", {"seed": 1, "mesh": {"data": 1}})


def test_somebody_elses_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(UserError, match=r"holds 'thesis\.tex' and no run"):
        RunDirectory(tmp_path, CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "file", CONFIG)
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "file" / "run", CONFIG)


def test_a_broken_config_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable"):
        RunDirectory(tmp_path, CONFIG)


@pytest.mark.slow
def test_a_directory_in_use_or_read_only_is_refused(tmp_path, obedient_python):
    run = RunDirectory(tmp_path / "used", CONFIG)
    locked = RunDirectory(tmp_path / "locked", CONFIG)
    locked.close()
    locked.path.chmod(0o555)
    code = (
        "import sys\nfrom rml.training import RunDirectory\nfor path in sys.argv[1:]:\n"
        f"  try: RunDirectory(path, {CONFIG!r})\n  except ValueError as error: print(error)"
    )
    other = subprocess.run(
        [*obedient_python, "-c", code, str(run.path), str(locked.path)],
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert other.stdout.splitlines() == [
        f"work directory {run.path} is in use by another run",
        f"work directory {locked.path} cannot be used: Permission denied",
    ], other.stderr
    run.close()
    RunDirectory(run.path, CONFIG)


def test_the_summary_marks_a_run_complete(tmp_path):
    run = RunDirectory(tmp_path, CONFIG, config_name="configs/a/b.py")
    assert run.summary() is None
    written = run.write_summary(metrics={"knn": 0.5}, claims=[], seconds=1.25)
    assert run.summary() == written
    assert written["versions"]["jax"]
    assert written["steps"] == 5


def test_metrics_after_the_restored_step_are_forgotten(tmp_path):
    writer = MetricsWriter(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.write(step, float(step), {"train/loss": 1.0 / step})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tra')  # killed while writing
    writer = MetricsWriter(tmp_path, step=2)
    assert writer.seconds == 2.0
    writer.write(3, 9.0, {"train/loss": float("nan"), "x": float("-inf")})
    writer.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1] == {"step": 3, "time": 9.0, "train/loss": "nan", "x": "-inf"}


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.write(step, 0.1, {"train/loss": 1.0 / step})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/loss")] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3),
    ]  # fmt: skip
