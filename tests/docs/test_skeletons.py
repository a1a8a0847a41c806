"""The skeleton of a new method, copied as the guide says, is a working method."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/method.md").read_text()


TRAIN_A_STEP = """
import jax
from experiments.registry import find_experiment, read_config
from experiments.systems import read_systems
from rml.training import initial_state

config = read_config("configs/contrastive/align_uniform_digits.py")
experiment = find_experiment(config.experiment)
task = experiment.task(config)
batch = next(iter(task.batches()))
state, metrics = jax.jit(task.step)(initial_state(task, seed=0), batch)
features = experiment.encoder(config, state)(batch["image"])
print(read_systems()["align_uniform"].built, len(experiment.CLAIMS))
print(features.shape, bool(jax.numpy.isfinite(metrics["loss"])))
"""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/skeletons").glob("*.py")), ids=lambda p: p.name
)
def test_skeletons_parse_and_the_guide_shows_them(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert f'--8<-- "docs/skeletons/{path.name}"' in GUIDE


@pytest.mark.slow
def test_four_files_and_two_lines_make_a_method(tmp_path):
    for folder in ("rml", "experiments", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    copies = re.findall(r"^cp (\S+) (\S+)$", GUIDE, re.M)
    assert len(copies) == 4
    for source, target in copies:
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / target)
    row = re.search(r"```toml\n(.*?)```", GUIDE, re.S)[1]
    (tmp_path / "systems.toml").write_text(f"{(ROOT / 'systems.toml').read_text()}\n{row}")
    room = tmp_path / "rml/contrastive/__init__.py"
    line = re.search(r"^from rml\.contrastive\.\w+ import \w+$", GUIDE, re.M)[0]
    text = room.read_text().replace("__all__ = [", '__all__ = ["align_uniform", ', 1)
    room.write_text(f"{text}\n{line}\n")

    def python(*args):
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    python("-m", "pytest", "-q", "-p", "no:cacheprovider", copies[3][1])
    assert python("-c", TRAIN_A_STEP) == "True 4\n(256, 128) True\n"
