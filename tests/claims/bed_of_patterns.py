"""A tiny bed of experts on patterns, for the tests of recipes that merge."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging import bed, finetuning, tasks
from experiments.merging.bed import Bed
from rml import data
from rml.models.transformer import run_blocks
from rml.training import RunDirectory
from tests.system.two_steps import override, read

SMALL = {
    "data.image_shape": (8, 8, 1), "model.width": 8, "model.depth": 1, "model.heads": 1,
    "model.patch_size": 4, "head.classes": 4, "pretraining.steps": 4, "pretraining.batch_size": 8,
    "pretraining.warmup_steps": 1, "optimizer.warmup_steps": 1, "train.steps": 4,
    "train.batch_size": 4, "train.checkpoint_every": 4, "train.log_every": 2,
    "evaluation.batch_size": 16, "augment_experts.order": (),
}  # fmt: skip


def patterns(seed, classes, count):
    """Noisy copies of one image a class."""
    rng = np.random.default_rng(seed)
    label = np.arange(count * classes) % classes
    image = rng.integers(0, 200, (classes, 8, 8, 1))[label]
    image += rng.integers(0, 55, image.shape)
    names = [str(i) for i in range(classes)]
    return data.ArraySource(image.astype(np.uint8), label, class_names=names)


def put_in(monkeypatch):
    """Two tasks of patterns in the place of the eight; they are returned."""
    made = {
        name: tasks.ImageTask(*[patterns(seed, 4, 4) for _ in range(3)])
        for seed, name in enumerate(("a", "b"))
    }
    monkeypatch.setattr(bed, "open_tasks", lambda config: made)
    return made


def config_of(path, **changes):
    """A config with two tasks and a model of a hundred parameters or so, changed where given."""
    config = override(read(path), {})
    config.tasks = dict.fromkeys(("a", "b"), next(iter(config.tasks.values())))
    return override(config, SMALL | changes)


class Layer(nn.Module):
    """A residual layer, as `run_blocks` scans it."""

    @nn.compact
    def __call__(self, x, layer):
        """What the next layer reads."""
        return x + jnp.tanh(nn.Dense(8, use_bias=False, name="qkv")(x)), layer


class Plain(nn.Module):
    """An encoder that compiles fast, with stacked layers as a vision transformer has them."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        """Features of images."""
        x = nn.Dense(8, name="patches")(x.reshape(len(x), -1)[:, ::4])
        return run_blocks(Layer, x, depth=2, scan=True, remat=False)[0]


def put_in_plain(monkeypatch):
    """The plain encoder in the place of a vision transformer."""
    monkeypatch.setattr(bed, "network", lambda config: Plain())
    monkeypatch.setattr(finetuning, "network", lambda config: Plain())


def made_bed(config, made):
    """A bed that nothing was trained for."""
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(finetuning.network(config).init, jax.random.key(0),
                                     jnp.zeros((1, 8, 8, 1))))["params"]  # fmt: skip

    def drawn(*lead):
        return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, (*lead, *s.shape)),
                                                  jnp.float32), shapes)  # fmt: skip

    heads = rng.normal(size=(2, 4, 8))
    heads /= np.linalg.norm(heads, axis=-1, keepdims=True)
    base = drawn()
    experts = jax.tree.map(lambda start, own: start + 0.7 * own, base, drawn(2))
    return Bed(config, base, experts, jnp.asarray(heads, jnp.float32), made)


def small_run(recipe, bed, monkeypatch, path):
    """What a recipe measures on a bed: finite, with every claim, null and figure."""
    monkeypatch.setattr(recipe, "open_bed", lambda *_: bed)
    directory = RunDirectory(path, bed.config.to_dict())
    found = recipe.run(bed.config, directory)
    directory.close()
    assert np.isfinite(list(found.values())).all()
    for claim in recipe.CLAIMS:
        assert {claim.metric, claim.null} <= set(found)
    assert {file.name for file in (path / "figures").glob("*.png")} == set(recipe.CAPTIONS)
    return found
