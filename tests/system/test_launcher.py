"""The launcher as a user meets it: real processes, wrong flags, wrong data."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/contrastive/simclr_digits.py"
SHORT = (DIGITS, "--config.train.steps=8", "--config.train.batch_size=32",
         "--config.optimizer.warmup_steps=2", "--config.train.eval_every=4",
         "--config.train.log_every=2")  # fmt: skip

FORK = """
import json, os, runpy, sys
import experiments.contrastive.simclr
for line in sys.stdin:
    args, out, err = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
        sys.argv = ["experiments/run.py", *args]
        runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def launch_forked(tmp_path_factory):
    """Launches as `launch` does, by processes that share one import of JAX."""
    server = subprocess.Popen(
        [sys.executable, "-c", FORK], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(*args: str) -> subprocess.CompletedProcess:
        out, err = (tmp_path_factory.mktemp("output") / name for name in ("out", "err"))
        print(json.dumps([args, str(out), str(err)]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())

    yield run
    server.stdin.close()
    server.wait(timeout=60)
    server.stdout.close()


def refused(result, *parts):
    """The program ended with one line that names these parts, and without a traceback."""
    assert result.returncode == 1, result
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") or lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for part in parts:
        assert part in result.stderr, result.stderr


def test_help_does_not_import_jax():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments.run", "--help"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "--workdir" in result.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "absl" in imported
    assert not imported & {"jax", "flax", "optax", "orbax", "grain", "matplotlib", "sklearn"}
    assert not imported & {"tensorflow", "tensorflow_datasets", "scipy", "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["no --config", "configs/contrastive/simclr_mnist5k.py"]),
        (["--config=configs/contrastive/simclr_minst5k.py"],
         ["'configs/contrastive/simclr_minst5k.py'", "simclr_mnist5k.py'?"]),
        (["--config", "nowhere.py"], ["nowhere.py"]),
        (["--config=Makefile"], ["Makefile", "SyntaxError"]),
        (["--config=experiments/claims.py"], ["get_config"]),
        ([DIGITS, "--config.train.stepz=3"], ["'train.stepz'", "'train.steps'?"]),
        ([DIGITS, "--config.train.steps=many"], ["--config.train.steps=many", "int"]),
        ([DIGITS, "--config.experiment=contrastive.simcrl"], ["contrastive.simcrl", "simclr'?"]),
        ([DIGITS, "--wrokdir=x"], ["wrokdir"]),
        ([DIGITS, "stray"], ["'stray'"]),
    ],
)  # fmt: skip
def test_wrong_flags(launch, tmp_path, args, parts):
    refused(launch(*args), *parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.name=digitz", ["'digitz'", "'digits'"]),
        ("data.name=npz:missing.npz", ["missing.npz"]),
        ("data.name=folder:/nowhere", ["/nowhere"]),
        ("data.train=trian", ["trian", "train"]),
        ("data.image_shape=(8,8,3)", ["[8, 8, 1]", "image_shape"]),
        ("model.name=convnett", ["'convnett'", "'convnet'"]),
        ("optimizer.name=adam", ["'adam'", "'adamw'"]),
        ("optimizer.warmup_steps=900", ["warmup_steps", "900"]),
        ("train.batch_size=5000", ["5000"]),
        ("train.steps=0", ["train.steps", "0"]),
        ("augment.order=('random_afine',)", ["random_afine"]),
        ("mesh.data=3", ["mesh", "data=3", "1 devices"]),
        # More devices than there are; a batch and a width that the mesh does not divide.
        ("mesh.data=8 --cpu_devices=4", ["data=8", "4 devices"]),
        ("train.batch_size=30 --cpu_devices=4", ["(30, 8, 8, 1)", "'data': 4", "must divide"]),
        ("head.hidden=255 --cpu_devices=2 --config.mesh.model=2", ["255", "'model': 2", "divide"]),
    ],
)
def test_wrong_values_end_before_any_work_and_leave_nothing(
    launch_forked, tmp_path, override, parts
):
    flags = f"--config.{override}".split(" ")
    result = launch_forked(DIGITS, *flags, f"--workdir={tmp_path / 'run'}")
    refused(result, *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_unreadable_npz(launch_forked, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"not a zip file")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    np.savez(tmp_path / "names.npz", pictures=np.zeros((4, 8, 8)), y=np.zeros(4))
    for name, parts in {
        "broken": ["broken.npz"],
        "objects": ["objects.npz"],
        "names": ["names.npz", "pictures", "image"],
    }.items():
        result = launch_forked(
            DIGITS, f"--config.data.name=npz:{tmp_path / name}.npz", f"--workdir={tmp_path / 'r'}"
        )
        refused(result, *parts)


@pytest.mark.slow
def test_a_run_leaves_what_it_promises_and_is_not_run_twice(launch, tmp_path):
    directory = tmp_path / "run"
    result = launch(*SHORT, f"--workdir={directory}")
    assert result.returncode == 0, result.stderr
    summary = json.loads((directory / "summary.json").read_text())
    assert 0 <= summary["metrics"]["knn"] <= 1
    assert {claim["holds"] for claim in summary["claims"]} <= {True, False}
    assert summary["config_name"] == "configs/contrastive/simclr_digits.py"
    figures = {p.name for p in (directory / "figures").glob("*.png")}
    assert figures == {"views.png", "loss.png", "knn.png", "embedding.png", "spectrum.png"}
    assert list(directory.glob("events.out.tfevents*"))
    assert (directory / "checkpoints" / "8").is_dir()
    # Plain lines where there is no terminal: no control characters.
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout
    assert "step 8/8" in result.stdout
    assert "claim" in result.stdout

    stamp = (directory / "metrics.jsonl").stat().st_mtime_ns
    began = time.perf_counter()
    again = launch(*SHORT, f"--workdir={directory}")
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert "linear_probe" in again.stdout
    assert (directory / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert time.perf_counter() - began < 60

    other = launch(*SHORT, "--config.seed=1", f"--workdir={directory}")
    refused(other, "seed: 0 there, 1 now")
    assert json.loads((directory / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_a_users_own_npz_trains(launch, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (120, 12, 12), dtype=np.uint8)
    labels = np.repeat(["cat", "dog", "owl"], 40)
    np.savez(tmp_path / "own.npz", image=images, label=labels)
    result = launch(
        *SHORT, f"--config.data.name=npz:{tmp_path / 'own.npz'}",
        "--config.data.image_shape=(12, 12, 1)", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_users_own_folder_of_mixed_sizes_trains(launch, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(30):
            shape = (10 + i % 5, 9 + i % 7, 3)
            image = Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))
            image.save(tmp_path / "own" / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    result = launch(
        *SHORT, f"--config.data.name=folder:{tmp_path / 'own'}",
        "--config.data.image_shape=(16, 16, 3)", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_two_runs_in_one_directory(launch, start, tmp_path):
    args = (*SHORT, "--config.train.steps=100000", f"--workdir={tmp_path / 'run'}")
    first = start(*args)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    refused(launch(*args), "in use by another run")
    assert first.poll() is None


HEAPS = """
import ctypes, sys, threading
from experiments.run import limit_arenas
if sys.argv[1] == "limited":
    limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(40)
def work():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(40)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
out = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are glibc's")
def test_threads_share_one_heap_a_core(tmp_path):
    def heaps(how, **environment):
        path = tmp_path / f"{how}{len(environment)}.xml"
        without = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
        subprocess.run(
            [sys.executable, "-c", HEAPS, how, str(path)],
            cwd=ROOT, env=without | environment, check=True,
        )  # fmt: skip
        return path.read_text().count("<heap nr=")

    cores = len(os.sched_getaffinity(0))
    assert heaps("unlimited") > cores
    assert heaps("limited") <= cores
    assert heaps("limited", MALLOC_ARENA_MAX=str(cores + 3)) == cores + 3  # the user's own word
