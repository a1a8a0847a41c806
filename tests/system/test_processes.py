"""Several processes on this machine: one run, however many there are."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import run as launcher
from rml.training import RunDirectory, fit, make_mesh
from rml.training.writers import read_metrics
from tests.system import kills, shared_out
from tests.system.forks import Fork, free_address, last_lists
from tests.training.conftest import build_task

STEPS = 40
TRAIN = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests/training")
from rml.training.processes import join, barrier
address, number, index, directory, steps, mesh, folder = sys.argv[1:]
join(address, int(number), int(index))
import conftest, jax, numpy as np
from experiments.common.encoders import restore
from rml.training import RunDirectory, fit, make_mesh
run = RunDirectory(directory, {"steps": 40, "mesh": json.loads(mesh)})
state = fit(conftest.build_task(), run, steps=int(steps), mesh=make_mesh(json.loads(mesh)),
            log_every=1, eval_every=20, checkpoint_every=10)
whole = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state))
own = restore(Path(directory), conftest.build_task())
mine = {device for leaf in jax.tree.leaves(own) for device in leaf.devices()}
mine = mine == {jax.local_devices()[0]} and int(own.step) == int(steps)
run.figure("of.txt").write_text(index)
if folder:
    from tests.system import shared_out
    mesh = make_mesh()
    np.savez(f"{folder}/{index}.npz", *shared_out.clusterings(mesh), shared_out.prototypes(mesh),
             shared_out.accuracies(mesh))
    split = make_mesh({"data": 1, "fsdp": 2})
    np.savez(f"{folder}/judged{index}.npz", *shared_out.judgements(split))
print(json.dumps([jax.process_count(), run.resumed, whole, mine]))
barrier("end")
run.close()
"""


def train(
    fork: Callable[..., Fork], directory: Path, processes: int, *, steps: int, mesh: dict,
    shared: Path | None = None,
) -> list:  # fmt: skip
    """Trains the small task by several processes; what each of them says at its end.

    Then they share out the work of `shared_out` and save what they find in the folder `shared`.
    """
    address = free_address()
    given = [str(directory), str(steps), json.dumps(mesh), str(shared or "")]
    started = [fork("-c", TRAIN, address, str(processes), str(i), *given) for i in range(processes)]
    return last_lists(started)


def train_here(directory: Path, task, *, steps: int) -> bool:
    """Trains the small task in this process; whether it was begun before."""
    run = RunDirectory(directory, {"steps": 40, "mesh": {}})
    fit(task, run, steps=steps, mesh=make_mesh({}), log_every=1, eval_every=20, checkpoint_every=10)
    run.close()
    return run.resumed


def curve(directory: Path) -> list[dict[str, float]]:
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: line[name] for name in line if name != "time"} for line in lines]


def assert_same(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert len(one) == len(other)
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-7)
        worst = max(worst, *(abs(b[key] - a[key]) / abs(a[key] or 1.0) for key in a))
    print(f"largest relative difference {worst:.1e}")


@pytest.fixture(scope="module")
def parts(fork, tmp_path_factory) -> tuple[Path, dict[int, list]]:
    """A run of four processes, then of one, then of two; what the processes of each said."""
    folder = tmp_path_factory.mktemp("parts")
    said = {4: train(fork, folder / "run", 4, steps=20, mesh={"data": 2, "model": 2})}
    said[1] = [train_here(folder / "run", build_task(), steps=30)]
    mesh = {"fsdp": 2, "data": 1}
    said[2] = train(fork, folder / "run", 2, steps=STEPS, mesh=mesh, shared=folder)
    return folder, said


@pytest.mark.slow
def test_processes_give_the_curve_of_one_and_the_first_writes(parts, tmp_path):
    """Rows split over two pairs of processes, of which each pair reads the same rows.

    Checkpoints restore under other processes and another mesh.
    """
    folder, said = parts
    # The state stays where it lies; what is restored to be used lies on a device of one's own.
    assert said[4] == [[4, False, False, True]] * 4
    assert said[1] == [True]
    assert said[2] == [[2, True, False, True]] * 2
    assert (folder / "run" / "figures" / "of.txt").read_text() == "0"
    assert len(list((folder / "run").glob("events.*"))) == 3  # one a start
    assert not train_here(tmp_path / "run", build_task(), steps=STEPS)
    alone = curve(tmp_path / "run")
    assert alone[-2]["train/loss"] < 0.5 * alone[0]["train/loss"]
    # Each end evaluates: the evaluation at step 30 is not in the whole run's curve.
    lines = [line for line in curve(folder / "run") if line["step"] != 30 or "train/loss" in line]
    assert_same(alone, lines)


@pytest.mark.slow
def test_clustering_points_and_episodes_are_shared_out_over_processes(parts):
    first, second = (np.load(parts[0] / f"{i}.npz") for i in range(2))
    *clusterings, prototypes, accuracies = (first[name] for name in first.files)
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    for found, expected in zip(clusterings, shared_out.clusterings(None), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(prototypes) == 6
    assert accuracies == pytest.approx(shared_out.accuracies(None), abs=1e-6)


@pytest.mark.slow
def test_evaluation_is_shared_out_over_processes(parts):
    first, second = (np.load(parts[0] / f"judged{i}.npz") for i in range(2))
    for name, expected in zip(first.files, shared_out.judgements(None), strict=True):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_all_of_them_can_be_stopped(start, tmp_path):
    path = tmp_path / "run"
    kills.kill_at_random(start, path, kills=2, last=20, count=2)  # process 0, then process 1
    saved = kills.steps_saved(path)[-1]
    again = kills.together(start, 2, *kills.ARGS, f"--workdir={path}")
    kills.wait_until(again[0], lambda: kills.steps_saved(path)[-1] > saved)
    again[1].send_signal(signal.SIGTERM)  # one is told, both stop at the same step
    outputs = [process.communicate(timeout=120)[0] for process in again]
    assert f"continuing after step {saved}" in outputs[0]
    stops = [line for text in outputs for line in text.splitlines() if "saved after step" in line]
    assert len(stops) == 2
    assert stops[0] == stops[1]
    assert [process.returncode for process in again] == [128 + signal.SIGTERM] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(num_processes=2), "need --coordinator_address=host:port"),
        (dict(coordinator_address="here"), "'here', expected host:port"),
        (dict(coordinator_address="h:1", num_processes=2), "needs --num_processes and"),
        (
            dict(coordinator_address="h:1", num_processes=2, process_id=2),
            "--process_id is 2, expected 0 to 1",
        ),
        (
            dict(coordinator_address="h:1", distributed=True),
            "--distributed finds the coordinator",
        ),
    ],
)
def test_flags_that_do_not_fit_are_named(capsys, given, message):
    launcher.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given), pytest.raises(SystemExit) as end:
        launcher.check_processes()
    assert end.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_work_directory_in_use_is_refused_in_every_process(start, tmp_path):
    """The first process finds it in use; the second one is told, and neither waits."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "letter.txt").write_text("not a run")
    processes = kills.together(start, 2, *kills.ARGS, f"--workdir={path}")
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert "holds 'letter.txt' and no run" in outputs[0]
    assert "failed in process 0" in outputs[1]
    assert [process.returncode for process in processes] == [1, 1]
    assert os.listdir(path) == ["letter.txt"] or set(os.listdir(path)) == {"letter.txt", ".lock"}
