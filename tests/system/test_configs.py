"""Every config can be trained as far as can be known without its data or its machine."""

import functools
import importlib
import math
from pathlib import Path

import flax.linen as nn
import jax
import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from experiments import ranges
from experiments.ranges import checked_experiment
from experiments.registry import config_keys, read_config
from experiments.systems import read_systems
from rml.models import ENCODERS
from rml.training import make_mesh, use_mesh
from tests.system.two_steps import trains

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").rglob("*.py")
    if path.stem not in ("__init__", "parts")
)


def test_there_are_configs():
    assert len(CONFIGS) > 10


@pytest.mark.slow
def test_the_configs_of_a_recipe_are_found_without_reading_all():
    paths = {path for system in read_systems().values() for path in system.configs}
    recipes: dict[str, set[str]] = {}
    for path in paths:
        recipes.setdefault(read_config(path).experiment, set()).add(path)
    assert len(recipes) > 50
    for recipe, own in recipes.items():
        assert ranges._known_keys(recipe).keys() == own
    assert len(ranges._naming("kernels.steps")) == 1


# A deep encoder repeats its blocks: one of a stage is traced like all, and two of a transformer, of
# which ScaleKD takes the last for itself.
SHALLOW = {
    name: functools.partial(encoder, depths=(1,) * 4) if "resnet" in name
    else functools.partial(encoder, depth=2)
    for name, encoder in ENCODERS.items() if name.startswith(("resnet", "vit"))
}  # fmt: skip

FEWEST = {"configs/distillation/distill_fashion.py": 7_000}
"""Parameters that are trained, where they are few on purpose: of a small student."""


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS)
def test_config_trains_abstractly(path, tmp_path, monkeypatch):
    """Init and step are traced with the shapes of a global batch; no data is opened."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, encoder in SHALLOW.items():
        monkeypatch.setitem(ENCODERS, name, encoder)
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config()
    assert isinstance(config, ConfigDict)
    experiment = checked_experiment(config)
    assert callable(experiment.run)
    assert experiment.CLAIMS
    assert all(name.endswith(".png") for name in experiment.CAPTIONS)
    if not hasattr(experiment, "task") or not trains(config):
        return

    task = experiment.task(config)
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    with use_mesh(make_mesh()):
        after, metrics = jax.eval_shape(task.step, state, task.batch_spec)
    assert jax.tree.map(shape, after) == jax.tree.map(shape, state)
    # Of several runs at once a vector stands beside the mean.
    vectors = {name[:-1]: x.shape for name, x in metrics.items() if name.endswith("/")}
    alone = {name: x.shape for name, x in metrics.items() if not name.endswith("/")}
    assert set(alone.values()) == {()}
    assert vectors.keys() <= alone.keys()
    assert {len(own) for own in vectors.values()} <= {1}
    assert "loss" in metrics
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert parameters > FEWEST.get(path, 10_000)
    # Images of one batch, or of one for each of the seeds or tasks that train side by side.
    size, beside = config.train.batch_size, config.get("seeds") or len(config.get("tasks", ()))
    expected = (beside, size) if beside else (size,)
    sizes = {leaf.shape[: len(expected)] for leaf in jax.tree.leaves(task.batch_spec)}
    assert sizes == {expected}
    assert not list(tmp_path.iterdir())


def shape(leaf):
    return leaf.shape, str(leaf.dtype)


@pytest.mark.parametrize("path", CONFIGS)
def test_values_that_are_none_can_be_overridden(path):
    config = read_config(path)
    untyped = [
        key for key in config_keys(config)
        if all(part.isidentifier() for part in key.split("."))
        and config_path.get_type(key, config) is type(None)
    ]  # fmt: skip
    assert not untyped, "expected config_dict.placeholder(type)"


@pytest.mark.parametrize("path", CONFIGS)
def test_docstring_has_the_command_that_runs_it(path):
    text = (ROOT / path).read_text().split('"""')[1]
    assert "python -m experiments.run" in text
    assert f"--config={path}" in text
    assert "--workdir=runs/" in text
