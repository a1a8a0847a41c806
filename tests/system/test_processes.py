"""Several processes on this machine: one run, however many there are."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rml.training.writers import read_metrics

ROOT = Path(__file__).parents[2]
TRAIN = """
import json, sys
sys.path.insert(0, "tests/training")
from rml.training.processes import join, barrier
address, number, index, directory, steps, mesh = sys.argv[1:]
if int(number) > 1:
    join(address, int(number), int(index))
import conftest, jax
from rml.training import RunDirectory, fit, make_mesh
run = RunDirectory(directory, {"steps": 40, "mesh": json.loads(mesh)})
state = fit(conftest.build_task(), run, steps=int(steps), mesh=make_mesh(json.loads(mesh)),
            log_every=1, eval_every=20, checkpoint_every=10)
whole = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state))
run.figure("of.txt").write_text(index)
print(json.dumps([jax.process_count(), run.resumed, whole]))
barrier("end")
run.close()
"""


SHARE = """
import json, sys
sys.path[:0] = ["tests/fewshot"]
from rml.training.processes import join, barrier
address, number, index = sys.argv[1:]
join(address, int(number), int(index))
import jax, jax.numpy as jnp, numpy as np
from test_evaluate import data, draw, evaluate_episodes, soft_kmeans
from rml.fewshot.clustering import cluster, mini_batch
from rml.ops.neighbors import knn_graph, mutual, with_self_loops
from rml.training import make_mesh

mesh = make_mesh()
x = 4 * jax.random.normal(jax.random.key(0), (6, 3))[jnp.arange(80) % 6]
x += jax.random.normal(jax.random.key(1), x.shape)
soft = dict(graph=with_self_loops(mutual(knn_graph(x, k=4))), laplacian_weight=0.5,
            temperature=0.3, support=3)
options = dict(num_clusters=6, key=jax.random.key(2), max_iterations=8, block=16)
differ = 0.0
for more in ({}, {"start": "k-means||"}, soft):
    one, many = (cluster(x, mesh=m, **options, **more) for m in (None, mesh))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
        differ = max(differ, float(np.nanmax(np.abs(np.asarray(a) - np.asarray(b)))))
few = mini_batch(x, x[:6], key=options["key"], iterations=3, batch_size=16, mesh=mesh)
images, labels = data()
episodes = [
    np.asarray(evaluate_episodes(soft_kmeans, images, draw(labels), ways=4, mesh=m)).tolist()
    for m in (None, mesh)
]
print(json.dumps([differ, np.asarray(few.prototypes).tolist(), episodes]))
barrier("end")
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(code: str, processes: int, *args: str) -> list:
    """Runs a program in several processes; what each of them says at its end."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(processes), str(i), *args],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    said = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        said.append(json.loads(out.splitlines()[-1]))
    return said


def train(directory: Path, processes: int, *, steps: int = 40, mesh: dict | None = None) -> list:
    """Trains the small task by several processes."""
    return together(TRAIN, processes, str(directory), str(steps), json.dumps(mesh or {}))


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
def alone(tmp_path_factory) -> list[dict[str, float]]:
    """The curve of one process."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    assert train(directory, 1) == [[1, False, True]]
    found = curve(directory)
    assert found[-2]["train/loss"] < 0.5 * found[0]["train/loss"]
    return found


@pytest.mark.slow
def test_processes_give_the_curve_of_one_and_the_first_writes(alone, tmp_path):
    """Rows split over two pairs of processes, of which each pair reads the same rows."""
    said = train(tmp_path / "run", 4, mesh={"data": 2, "model": 2})
    assert said == [[4, False, True]] * 4
    assert_same(alone, curve(tmp_path / "run"))
    assert (tmp_path / "run" / "figures" / "of.txt").read_text() == "0"
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


@pytest.mark.slow
def test_checkpoints_restore_under_other_processes_and_another_mesh(alone, tmp_path):
    train(tmp_path / "run", 2, steps=10, mesh={"model": 2, "data": 1})
    assert train(tmp_path / "run", 1, steps=20) == [[1, True, True]]
    assert train(tmp_path / "run", 2, steps=40, mesh={"fsdp": 2, "data": 1})[0] == [2, True, True]
    lines = curve(tmp_path / "run")
    # Each end evaluates: the evaluation at step 10 is not in the whole run's curve.
    assert_same(alone, [line for line in lines if line["step"] != 10 or "train/loss" in line])


@pytest.mark.slow
def test_clustering_points_and_episodes_are_shared_out_over_processes():
    (differ, prototypes, episodes), other = together(SHARE, 2)
    assert [differ, prototypes, episodes] == other
    assert differ < 1e-4
    assert len(prototypes) == 6
    assert episodes[1] == pytest.approx(episodes[0], abs=1e-6)


def launch_together(start, path: Path, processes: int) -> list[subprocess.Popen]:
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    return [
        start(
            "--config=configs/contrastive/simclr_digits.py", f"--workdir={path}", address,
            f"--num_processes={processes}", f"--process_id={i}", "--config.train.steps=100000",
            "--config.train.batch_size=32", "--config.train.eval_every=0",
            "--config.train.log_every=1", "--config.train.checkpoint_every=5",
        )
        for i in range(processes)
    ]  # fmt: skip


def wait_for_checkpoint(path: Path, processes: list[subprocess.Popen], after: int = 0) -> None:
    deadline = time.monotonic() + 300
    while not any(int(p.name) > after for p in path.glob("checkpoints/*") if p.name.isdigit()):
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_all_of_them_can_be_stopped(start, tmp_path):
    path = tmp_path / "run"
    first, second = launch_together(start, path, 2)
    wait_for_checkpoint(path, [first, second])
    second.kill()
    began = time.monotonic()
    output = first.communicate(timeout=60)[0]
    assert time.monotonic() - began < 60
    assert first.returncode == 1
    assert "another process of this run has ended" in output
    assert "start all processes again" in output
    saved = max(int(p.name) for p in path.glob("checkpoints/*") if p.name.isdigit())

    again = launch_together(start, path, 2)
    wait_for_checkpoint(path, again, after=saved)
    again[1].send_signal(signal.SIGTERM)  # one is told, both stop at the same step
    outputs = [process.communicate(timeout=120)[0] for process in again]
    assert f"continuing after step {saved}" in outputs[0]
    stops = [line for text in outputs for line in text.splitlines() if "saved after step" in line]
    assert len(stops) == 2
    assert stops[0] == stops[1]
    assert [process.returncode for process in again] == [128 + signal.SIGTERM] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "need --coordinator_address=host:port"),
        (["--coordinator_address=here"], "'here', expected host:port"),
        (["--coordinator_address=h:1", "--num_processes=2"], "needs --num_processes and"),
        (
            ["--coordinator_address=h:1", "--num_processes=2", "--process_id=2"],
            "--process_id is 2, expected 0 to 1",
        ),
        (["--coordinator_address=h:1", "--distributed"], "--distributed finds the coordinator"),
    ],
)
def test_flags_that_do_not_fit_are_named(launch, tmp_path, flags, message):
    result = launch(
        "--config=configs/contrastive/simclr_digits.py", f"--workdir={tmp_path / 'run'}", *flags
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_work_directory_in_use_is_refused_in_every_process(start, launch, tmp_path):
    """The first process finds it in use; the second one is told, and neither waits."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "letter.txt").write_text("not a run")
    processes = launch_together(start, path, 2)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert "holds 'letter.txt' and no run" in outputs[0]
    assert "failed in process 0" in outputs[1]
    assert [process.returncode for process in processes] == [1, 1]
    assert os.listdir(path) == ["letter.txt"] or set(os.listdir(path)) == {"letter.txt", ".lock"}
