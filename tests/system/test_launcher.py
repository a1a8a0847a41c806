"""The launcher as a user meets it: real processes, wrong flags, data of one's own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments import registry
from experiments import run as launcher
from rml.errors import UserError
from rml.training import Interrupted, RunDirectory

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/contrastive/simclr_digits.py"
SMALL = (
    DIGITS, "--config.train.batch_size=16", "--config.optimizer.warmup_steps=2",
    "--config.model.widths=(4,8)", "--config.model.features=16", "--config.head.hidden=16",
    "--config.head.features=8", "--config.train.log_every=2", "--config.train.eval_every=2",
    "--config.data.image_shape=(8, 8, 3)",
)  # fmt: skip
SHORT = (*SMALL, "--config.train.steps=4")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """An npz file with text labels, and a folder of images of mixed sizes and kinds."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(root / "own.npz", image=images, label=np.repeat(["cat", "dog", "owl"], 20))
    for name in ("cat", "dog", "owl"):  # as many as above: one compilation serves both
        (root / "folder" / name).mkdir(parents=True)
        for i in range(20):
            shape = (10 + i % 5, 9 + i % 7, 3)
            image = Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))
            image.save(root / "folder" / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


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
    assert result.returncode == 0
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
        ([DIGITS, "--config.data.name=digitz", "--workdir="], ["--workdir is empty, expected a"]),
    ],
)  # fmt: skip
def test_wrong_flags(launch, tmp_path, args, parts):
    refused(launch(*args), *parts)


@pytest.mark.slow
def test_help_of_a_config_shows_what_it_is_and_its_values(launch):
    result = launch(DIGITS, "--config.seed=7", "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("SimCLR on scikit-learn's 8x8 digits")
    lines = result.stdout.splitlines()
    assert "seed = 7" in lines
    assert "optimizer.learning_rate = 0.002" in lines


@pytest.fixture
def recipe(monkeypatch):
    """The recipe of every config, whose `run` is set by who uses it."""
    recipe = SimpleNamespace(run=None, CLAIMS=(), CAPTIONS={})
    monkeypatch.setattr(launcher.ranges, "checked_experiment", lambda _: recipe)
    monkeypatch.setattr(launcher, "quiet_libraries", lambda: None)
    monkeypatch.setattr(launcher, "keep_compiled", lambda: None)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return recipe


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), launcher.Terminated(), RuntimeError("out of memory"),
             TypeError("x"), UserError("x"), Interrupted(signal.SIGTERM, 5)],
)  # fmt: skip
def test_whatever_ends_an_extension_before_it_trains_the_run_stays_complete(
    tmp_path, recipe, capsys, stop
):
    def run(*_):
        raise stop

    config = registry.read_config("configs/contrastive/simclr_digits.py")
    recipe.run = lambda *_: {}
    launcher.launch(config, tmp_path, "config.py")
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.json*")}
    capsys.readouterr()
    config.train.steps += 1
    recipe.run = run
    with pytest.raises(SystemExit if isinstance(stop, Interrupted) else type(stop)) as kept:
        launcher.launch(config, tmp_path, "config.py")
    assert {file: file.read_bytes() for file in tmp_path.glob("*.json*")} == before
    if isinstance(stop, Interrupted):  # launched by a function, as in a notebook
        assert capsys.readouterr().out == (
            "SIGTERM: saved after step 5; start it again with the same config and work directory "
            "to continue\n"
        )
    # An error keeps its frames, in a notebook until the next one; the directory is free.
    RunDirectory(tmp_path, config.to_dict()).close()
    assert kept.tb is not None


@pytest.mark.parametrize(
    "path",
    [
        "attention/length_extension", "distillation/tgeokd",
        "distillation/tgeokd_flights", "hydra/compare_mnist5k", "hydra/compare_glyphs",
        "kernels/classification_digits", "merging/fisher_merging", "merging/logits_fusion",
        "merging/multilevel_mnist5k", "merging/ot_fusion", "retrieval/finetune_pydocs",
        "retrieval/starts_pydocs", "sparsity/prosparse",
    ],
)  # fmt: skip
def test_recipes_with_a_stage_that_depends_on_another_are_not_extended(
    tmp_path, recipe, monkeypatch, path
):
    config = registry.read_config(f"configs/{path}.py")
    experiment = registry.find_experiment(config.experiment)
    monkeypatch.setattr(experiment, "run", recipe.run)  # which trains nothing
    monkeypatch.setattr(launcher.ranges, "checked_experiment", lambda _: experiment)
    RunDirectory(tmp_path, config.to_dict()).close()
    config.train.steps += 1
    with pytest.raises(UserError, match=r"another has learned would keep .* another --workdir$"):
        launcher.launch(config, tmp_path, "config.py")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("hydra/compare_mnist5k", "knn_k"), ("hydra/compare_glyphs", "knn_temperature"),
        ("merging/fisher_merging", "most"), ("retrieval/finetune_pydocs", "max_length"),
        ("retrieval/starts_pydocs", "validation_queries"),
    ],
)  # fmt: skip
def test_recipes_whose_stages_choose_by_the_evaluation_do_not_continue_with_another(
    tmp_path, recipe, monkeypatch, path, key
):
    config = registry.read_config(f"configs/{path}.py")
    experiment = registry.find_experiment(config.experiment)
    monkeypatch.setattr(experiment, "run", recipe.run)  # which trains nothing
    monkeypatch.setattr(launcher.ranges, "checked_experiment", lambda _: experiment)
    RunDirectory(tmp_path, config.to_dict()).close()
    (tmp_path / "methods" / "first" / "checkpoints" / "5").mkdir(parents=True)
    old = config.evaluation[key]
    config.evaluation[key] = old * 2
    with pytest.raises(UserError, match=rf"\(evaluation\.{key}: {old} there, {old * 2} now\)"):
        launcher.launch(config, tmp_path, "config.py")


@pytest.mark.parametrize(("policy", "found"), [("highest", "highest"), ("default", None)])
def test_a_run_has_the_precision_of_its_config(tmp_path, recipe, policy, found):
    seen = []

    def run(*_):
        seen.append(jax.config.jax_default_matmul_precision)
        return {}

    recipe.run = run
    config = registry.read_config("configs/contrastive/simclr_digits.py")
    config.precision = policy
    launcher.launch(config, tmp_path / "run", "config.py")
    assert seen == [found]


BLOCKED = "import pathlib, time\npathlib.Path({marker!r}).touch()\ntime.sleep(60)\n"


def interrupt_at(marker, process, output):
    """Sends Ctrl-C once a file is there: the program says so in one line and ends."""
    while not marker.exists():
        assert process.poll() is None, output.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    assert output.read() == "interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["while a config is read", "while a library is imported"])
def test_interrupted_at_the_start(start, tmp_path, when):
    marker = tmp_path / "here"
    module = tmp_path / ("config.py" if "config" in when else "ml_collections.py")
    module.write_text(BLOCKED.format(marker=str(marker)))
    # A directory of the path is searched before the installed packages.
    process = start(f"--config={tmp_path}/config.py", fresh=True, PYTHONPATH=str(tmp_path))
    interrupt_at(marker, process, process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["embed", "sweep", "claims", "systems", "cards"])
def test_other_programs_are_interrupted_while_they_import(tmp_path, program):
    marker = tmp_path / "here"
    blocked = "numpy" if program == "embed" else "ml_collections"
    (tmp_path / f"{blocked}.py").write_text(BLOCKED.format(marker=str(marker)))
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.{program}"], cwd=ROOT, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    interrupt_at(marker, process, process.stderr)


COMPUTING = """
import jax, jax.numpy as jnp
from absl import app
from experiments import embed, interrupts, run

def compute(*_):
    step = lambda i, x: jnp.tanh(x @ x)
    jax.jit(lambda x: jax.lax.fori_loop(0, 10**8, step, x))(jnp.eye(300))
    raise {stop}

"""
RUN = """
run.launch = compute
app.run(run.main, ["run", "--config=configs/contrastive/simclr_digits.py"])
"""
CONTINUE = "interrupted; continue from the last checkpoint, if any, with:"
TOOL = """
interrupts.leave(embed.run_command(embed.plain_parser("resize", "Resizes."), [], compute))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "stop", "code", "said"),
    [
        (RUN, "KeyboardInterrupt", 130, CONTINUE),
        (RUN, "run.Terminated", 143, CONTINUE),
        (TOOL, "KeyboardInterrupt", 130, "interrupted; nothing was written"),
    ],
)
def test_interrupted_while_xla_computes(program, stop, code, said):
    """The interpreter's own end waits for the computation, or crashes for what it has taken."""
    result = subprocess.run(
        [sys.executable, "-c", COMPUTING.format(stop=stop) + program], cwd=ROOT, timeout=60,
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    assert result.stdout.startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.name=digitz", ["'digitz'", "'digits'"]),
        ("evaluation.knn_k=0", ["evaluation.knn_k is 0", "at least 1"]),
        ("data.test=tset", ["'tset'", "test"]),
        # More devices than there are; a batch that the mesh does not divide; a bucket.
        ("mesh.data=8 --cpu_devices=4", ["data=8", "4 devices"]),
        ("train.batch_size=30 --cpu_devices=4", ["(30, 8, 8, 1)", "'data': 4", "must divide"]),
        ("seed=1 --workdir=gs://bucket/run", ["--workdir is 'gs://bucket/run', a URL", "mount"]),
    ],
)
def test_wrong_values_end_before_any_work_and_leave_nothing(launch, tmp_path, override, parts):
    """The table of `test_bad_inputs.py` has more."""
    flags = f"--config.{override}".split(" ")
    result = launch(DIGITS, f"--workdir={tmp_path / 'run'}", *flags)
    refused(result, *parts)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_leaves_what_it_promises_and_is_not_run_twice(launch, own, tmp_path):
    directory = tmp_path / "run"
    args = (*SHORT, f"--config.data.name=npz:{own / 'own.npz'}", f"--workdir={directory}")
    result = launch(*args)
    assert result.returncode == 0, result.stderr
    summary = json.loads((directory / "summary.json").read_text())
    assert 0 <= summary["metrics"]["knn"] <= 1
    assert {claim["holds"] for claim in summary["claims"]} <= {True, False, None}
    assert summary["config_name"] == "configs/contrastive/simclr_digits.py"
    figures = {p.name for p in (directory / "figures").glob("*.png")}
    assert figures == {"views.png", "loss.png", "knn.png", "embedding.png", "spectrum.png"}
    assert list(directory.glob("events.out.tfevents*"))
    assert (directory / "checkpoints" / "4").is_dir()
    # Plain lines where there is no terminal: no control characters.
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout
    assert "step 4/4" in result.stdout
    assert "claims of this config are about its own data" in result.stdout

    stamp = (directory / "metrics.jsonl").stat().st_mtime_ns
    began = time.perf_counter()
    again = launch(*args)
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert "linear_probe" in again.stdout
    assert (directory / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert time.perf_counter() - began < 60

    refused(launch(*args, "--config.seed=1"), "seed: 0 there, 1 now")
    assert json.loads((directory / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_a_users_own_folder_of_mixed_sizes_trains(launch, own, tmp_path):
    result = launch(
        *SHORT, f"--config.data.name=folder:{own / 'folder'}", f"--workdir={tmp_path / 'run'}"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_two_runs_in_one_directory(launch, start, own, tmp_path):
    args = (
        *SMALL, "--config.train.steps=100000", f"--config.data.name=npz:{own / 'own.npz'}",
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    first = start(*args)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    refused(launch(*args), "in use by another run")
    assert first.poll() is None
