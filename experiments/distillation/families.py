"""Teachers of several families of networks, and what students of other families learn from."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.comparison import for_each
from experiments.common.encoders import ProjectedEncoder, read_run, restore
from experiments.common.images import open_images
from experiments.common.pretraining import train
from experiments.common.supervised import classification
from rml import models
from rml.data import augment
from rml.distillation import as_map
from rml.errors import UserError, local_path
from rml.training import Progress, RunDirectory
from rml.training.config_file import as_written, check_complete, differences, list_differences

PARTS = ("teacher", "train", "validation", "test")
"""Keys of `config.data` with splits; teachers have images of their own."""
READ = 1000
"""Images that a network reads at once."""
OF_TEACHERS = ("seed", "classes", "augment", "loss", "teachers", "teaching")
"""Keys of a config that teachers depend on, beside `OF_IMAGES` of its `data`."""
OF_IMAGES = ("name", "image_shape", "teacher")


class Read(NamedTuple):
    """What a network makes of images.

    Attributes:
      logits: Logits [n, k].
      features: What its classifier reads, [n, d].
      stages: Outputs of its stages, [n, ...].
    """

    logits: Array
    features: Array
    stages: tuple[Array, ...]


class Bed(NamedTuple):
    """What students are trained and judged on.

    Attributes:
      families: Names of the families; teachers stand in their order.
      train: Arrays of training images: "image", "label", "teacher", each teacher's logits
        [n, t, k], "features", what its classifier reads [n, t, d], and "maps", its last stage
        [n, t, h, w, c] without a class token.
      validation: "image" and "label" of images that no student is trained on.
      test: The same of test images.
      accuracy: Accuracy of each teacher on test images.
      stages: Outputs of the teacher's stages on the first test images, by family.
      variables: Variables of the teacher, by family.
    """

    families: tuple[str, ...]
    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    accuracy: Mapping[str, float]
    stages: Mapping[str, tuple[Array, ...]]
    variables: Mapping[str, Any]


def classifier(config: Any, model: Any) -> ProjectedEncoder:
    """The network that a part of the config describes, with logits of `config.classes`."""
    return ProjectedEncoder(models.build(**model), models.Classifier(config.classes))


def make_bed(config: Any, run: RunDirectory) -> Bed:
    """Trains a teacher of each family of `config.teachers`, and reads images by it.

    Args:
      config: The run's config, of which `data`, `teachers`, `teaching`, `compared` and
        `given.images` are read. Teachers are those of the run in `teaching.run`, if it names one.
      run: Its directory; teachers are `methods/teacher_<family>`.

    Raises:
      UserError: The images have other classes than `config.classes`, `given.images` is not the
        number of training images, there are no such teachers in the run that is named, or they
        are of another config, see `check_teachers`, or the features of teachers differ in width,
        or their last stages in shape.
    """
    check_teachers(config)
    sources = {part: open_images(config, part, labelled=True) for part in PARTS}
    for source in sources.values():
        if source.num_classes != config.classes:
            raise UserError(
                f"{source.name} has {source.num_classes} classes, expected classes={config.classes}"
            )
    arrays = {part: sources[part].arrays() for part in PARTS[1:]}
    count = len(arrays["train"]["label"])
    if config.given.images != count:
        raise UserError(
            f"given.images is {config.given.images:g}, expected {count}, the number of images of "
            f"{sources['train'].name} {sources['train'].split}: set --config.given.images"
        )
    own = config.copy_and_resolve_references()
    for key in ("optimizer", "train"):
        own[key] = own.teaching[key]

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        net = classifier(own, own.teachers[name.removeprefix("teacher_")])
        problem = classification(
            own, net, train=lambda: sources["teacher"], held_out=lambda: sources["validation"]
        )
        if own.teaching.run:
            variables = restore(directory_of(own, name), problem).variables
        else:
            variables = train(own, inner, problem, "eval/accuracy").variables
        known = read(net, variables, arrays["train"]["image"])
        seen = read(net, variables, arrays["test"]["image"])
        right = float(np.mean(seen.logits.argmax(1) == arrays["test"]["label"]))
        stages = tuple(stage[: config.compared] for stage in seen.stages)
        return {"accuracy": right}, (known, right, stages, variables)

    families = tuple(config.teachers)
    found = for_each(run, [f"teacher_{name}" for name in families], measure)
    known, right, stages, variables = zip(*(each for _, each in found.values()), strict=True)
    shares = ", ".join(f"{name} {one:.1%}" for name, one in zip(families, right, strict=True))
    Progress().note(f"teachers are right on test images: {shares}")
    learned = {}
    for key, parts in {
        "teacher": [one.logits for one in known],
        "features": [one.features for one in known],
        "maps": [as_map(jnp.asarray(one.stages[-1])) for one in known],
    }.items():
        shapes = {name: own.shape[1:] for name, own in zip(families, parts, strict=True)}
        if len(set(shapes.values())) > 1:
            raise UserError(f"{key} of teachers have shapes {shapes}, expected one shape")
        learned[key] = np.stack(parts, axis=1).astype(np.float32)
    return Bed(
        families, {**arrays["train"], **learned}, arrays["validation"], arrays["test"],
        *(dict(zip(families, own, strict=True)) for own in (right, stages, variables)),
    )  # fmt: skip


def directory_of(config: Any, name: str) -> Path:
    """Finds the directory of a teacher in the run that `teaching.run` names."""
    return local_path(config.teaching.run, "teaching.run") / "methods" / name


def check_teachers(config: Any) -> None:
    """Raises `UserError` unless the run that `teaching.run` may name has trained these teachers.

    Its values of `OF_TEACHERS` have to be those of the config, but for teachers that are not taken:
    on other images of theirs, students could be judged on what a teacher has learned.
    """
    if not config.teaching.run:
        return
    for family in config.teachers:
        directory = directory_of(config, f"teacher_{family}")
        there = of_teachers(read_run(directory, "teaching.run").to_dict(), family)
        here = of_teachers(as_written(config.to_dict()), family)
        if differing := differences(there, here):
            raise UserError(
                f"teaching.run is {config.teaching.run!r}, whose teachers are of another config; "
                f"expected the same values: {list_differences(differing)}"
            )
        check_complete(directory, "teaching.run")


def of_teachers(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Picks the values of a config that the teacher of a family depends on, where it has them."""
    found = {key: config[key] for key in OF_TEACHERS if key in config}
    for key, names in (("teachers", (family,)), ("data", OF_IMAGES)):
        found[key] = {name: x for name, x in config.get(key, {}).items() if name in names}
    teaching = config.get("teaching", {})
    return found | {"teaching": {name: x for name, x in teaching.items() if name != "run"}}


def read(model: ProjectedEncoder, variables: Any, images: np.ndarray) -> Read:
    """Reads images by a network, so many at once that two programs are enough."""
    apply = _reader(model)
    parts = [apply(variables, images[i : i + READ]) for i in range(0, len(images), READ)]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


@cache
def _reader(model: ProjectedEncoder) -> Callable[[Any, Any], Read]:
    """One function for each network, so that it is compiled once."""

    def of(module: Any, images: Any) -> Read:
        found = module.encoder(augment.to_float(images), train=False, stages=True)
        logits = jnp.asarray(module.head(found.features, train=False))
        return Read(logits, found.features, found.stages)

    return jax.jit(lambda variables, images: model.apply(variables, images, method=of))
