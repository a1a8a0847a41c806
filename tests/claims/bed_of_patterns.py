"""A tiny bed of experts on patterns, for the tests of recipes that merge."""

import numpy as np

from experiments.merging import bed, tasks
from rml import data
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
    config.tasks = dict.fromkeys(("a", "b"), config.tasks.mnist5k)
    return override(config, SMALL | changes)
