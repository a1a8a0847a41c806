"""Teachers and students that nothing was trained for, for the tests of recipes that distil."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation import families, ofakd_students, students, together

SMALL = {
    "data.name": "mnist5k", "data.train": "train[:2%]", "data.validation": "train[2%:3%]",
    "data.teacher": "train[10%:15%]", "data.test": "test[:8%]", "train.steps": 2,
    "train.batch_size": 8, "train.checkpoint_every": 0, "train.log_every": 1,
    "optimizer.warmup_steps": 1, "evaluation.batch_size": 32,
    "students.convnet.widths": (2, 2, 3), "students.convnet.features": 4,
    "students.mixer.width": 4, "students.mixer.token_hidden": 3,
    "students.mixer.channel_hidden": 3, "students.vit.width": 4, "students.vit.depth": 3,
    "students.vit.heads": 2, "given.images": 80.0, "exits.width": 4, "exits.heads": 2,
}  # fmt: skip
FAMILIES = SMALL | {
    "timing.repeats": 1, "teachers.convnet.widths": (2, 2, 4), "teachers.convnet.features": 4,
    "teachers.vit.width": 4, "teachers.vit.depth": 3, "teachers.vit.heads": 2,
    "teachers.mixer.width": 4, "teachers.mixer.token_hidden": 3,
    "teachers.mixer.channel_hidden": 3,
}  # fmt: skip
"""Of recipes whose teachers and students are of three families."""


def draw(tree, seed, *, runs=()):
    """Variables of a module drawn by NumPy, and left in it: each operation compiles by shape."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.6, (*runs, *leaf.shape)).astype(leaf.dtype), tree
    )


def shapes(module, config):
    """Shapes of a module's variables on images of a config."""
    images = jnp.zeros((2, *config.data.image_shape))
    init = lambda key: module.init(key, images, train=False)  # noqa: E731
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def two_steps(problem):
    """Takes two steps of a student from drawn variables; its batch statistics are kept.

    Returns:
      How far each parameter of its network moved at most, as a tree.
    """
    state = jax.eval_shape(lambda key: nn.meta.unbox(problem.init(key)), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.replace(key=None))
    drawn = draw(state.params, 0)
    start = zeros.replace(
        key=jax.random.key(0), params=drawn, model_state=draw(state.model_state, 1)
    )
    step, rows = jax.jit(problem.step), iter(problem.batches())
    after, metrics = step(start, next(rows))
    assert np.isfinite(float(metrics["loss"]))
    after = jax.device_get(step(after, next(rows))[0].replace(key=None))
    kept = jax.tree.map(lambda a, b: bool((a != b).any()), after.model_state, start.model_state)
    assert all(jax.tree.leaves(kept))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params, drawn)
    return moved.get("network", moved)


def of_kind(config, name):
    """Shapes of the variables of one of `ofakd_students`, see `put_in`."""
    family, _, kind = name.partition("_")
    module = ofakd_students.with_exits if kind == "exits" else students.network
    return shapes(module(config, family), config)


def made_bed():
    """A bed of 12 drawn images and of what three teachers say of them."""
    rng = np.random.default_rng(0)
    train = {
        "image": rng.integers(0, 255, (12, 28, 28, 1)).astype(np.uint8),
        "label": (np.arange(12) % 10).astype(np.int32),
        "teacher": rng.standard_normal((12, 3, 10)).astype(np.float32),
        "features": rng.standard_normal((12, 3, 4)).astype(np.float32),
        "maps": rng.standard_normal((12, 3, 4, 4, 4)).astype(np.float32),
    }
    return families.Bed(("convnet", "vit", "mixer"), train, train, train, {}, {}, {})


def put_in(monkeypatch, student_shapes, *readers):
    """Draws teachers, students and what both say of images in the place of training them.

    Args:
      monkeypatch: The fixture.
      student_shapes: Shapes of a student's variables from its config and the program's name.
      *readers: Modules beside `families` that read images by teachers.
    """

    def train(config, inner, problem, name):
        del name
        model = config.teachers[inner.path.name.removeprefix("teacher_")]
        net = families.classifier(config, model)
        return SimpleNamespace(variables=draw(shapes(net, config), 0))

    known = {}

    def read(model, variables, images):
        if model not in known:
            known[model] = jax.eval_shape(families._reader(model), variables, images)
        rng, size = np.random.default_rng(2), len(images)
        return jax.tree.map(
            lambda x: rng.standard_normal((size, *x.shape[1:])).astype(np.float32), known[model]
        )

    def train_together(config, run, name, task_of, configs, *, batches, judge):
        del run, task_of, batches, judge
        drawn = draw(student_shapes(config, name), 1, runs=(len(configs),))
        rest = {key: part for key, part in drawn.items() if key != "params"}
        state = SimpleNamespace(params={"network": drawn["params"]}, model_state=rest)
        return state, np.random.default_rng(len(name)).random(len(configs))

    def named_rightly(model, variables, part):
        runs = len(jax.tree.leaves(variables)[0])
        jax.eval_shape(jax.vmap(lambda v: model.apply(v, jnp.zeros((2, 28, 28, 1)))), variables)
        drawn = np.random.default_rng(runs).random((runs, len(part["label"])))
        return (drawn > 0.4).astype(np.float32)

    monkeypatch.setattr(families, "train", train)
    for module in (families, *readers):
        monkeypatch.setattr(module, "read", read)
    monkeypatch.setattr(together, "train_together", train_together)
    monkeypatch.setattr(students, "named_rightly", named_rightly)
