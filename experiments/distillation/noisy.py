"""A frozen teacher and noisy data for its students: flipped labels, and images of noise alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.common.comparison import for_each
from experiments.common.encoders import ProjectedEncoder
from experiments.common.images import open_images
from experiments.common.pretraining import train
from experiments.common.supervised import classification, logits_of
from experiments.distillation.together import named_rightly
from rml import data, models
from rml.distillation import teacher_means
from rml.errors import UserError
from rml.training import Progress, RunDirectory

CLEAN, FLIPPED, NOISE = range(3)
"""Groups of training images: as they are, with a wrong label, of noise with a label of old."""
GROUPS = ("clean", "flipped", "noise")


class Bed(NamedTuple):
    """What students are trained and judged on.

    Attributes:
      train: Arrays of training images: "image", "label" as given, "teacher" logits and "group".
      validation: "image" and "label" of clean images that no student is trained on.
      test: The same of test images.
      means: The teacher's mean over the training images of each label as given, [classes, k].
      teacher_accuracy: Accuracy of the teacher on test images.
      groups: Names of the groups.
      judge: `judge(model, variables, part)` gives, of variables with a leading axis, [students, n]
        values whose means are what students are compared by.
    """

    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    means: np.ndarray
    teacher_accuracy: float
    groups: Sequence[str] = GROUPS
    judge: Callable[[Any, Any, Mapping[str, np.ndarray]], np.ndarray] = named_rightly

    def with_validation(self) -> "Bed":
        """A bed whose training images are these and those of validation."""
        both = {key: np.concatenate([own, self.validation[key]]) for key, own in self.train.items()}
        return self._replace(train=both)


def classifier(config: Any) -> ProjectedEncoder:
    """The network of `config.model` with logits of `config.classes`."""
    return ProjectedEncoder(models.build(**config.model), models.Classifier(config.classes))


def spoil(
    images: np.ndarray, labels: np.ndarray, *, flipped: float, noise: float, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes a share of images noise, and gives a share of the others a wrong label.

    Args:
      images: uint8 images.
      labels: Their classes.
      flipped: Share of wrong labels among the images that stay.
      noise: Share of images that become Gaussian noise around a medium grey.
      classes: Number of classes.
      seed: Seed of all draws.

    Returns:
      Images, labels, and the group of each image.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    first = round(noise * len(images))
    second = first + round(flipped * (len(images) - first))
    group = np.full(len(images), CLEAN, np.int32)
    group[order[:first]], group[order[first:second]] = NOISE, FLIPPED
    drawn = rng.normal(0.5, 0.25, (first, *images.shape[1:]))
    images, labels = images.copy(), labels.copy()
    images[order[:first]] = np.round(255 * np.clip(drawn, 0, 1)).astype(np.uint8)
    wrong = order[first:second]
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return images, labels, group


def teacher_config(config: Any) -> ConfigDict:
    """The config of the teacher: `config.teacher` in the place of the student's parts."""
    own = config.copy_and_resolve_references()
    for key in ("model", "optimizer", "train"):
        own[key] = own.teacher[key]
    return own


def make_bed(config: Any, run: RunDirectory) -> Bed:
    """Trains the teacher on images of its own and spoils the students'.

    Args:
      config: The run's config, of which `data`, `teacher` and `noise` are read.
      run: Its directory; the teacher is `methods/teacher`.

    Raises:
      UserError: The images have other classes than `config.classes`.
    """
    sources = {part: open_images(config, part, labelled=True) for part in PARTS}
    for source in sources.values():
        if source.num_classes != config.classes:
            raise UserError(
                f"{source.name} has {source.num_classes} classes, expected classes={config.classes}"
            )
    own = teacher_config(config)
    net = classifier(own)
    arrays = {part: sources[part].arrays() for part in ("train", "validation", "test")}
    given: dict[str, Any] = dict(config.noise) | {"classes": config.classes, "seed": config.seed}
    images, labels, group = spoil(arrays["train"]["image"], arrays["train"]["label"], **given)
    spoiled = data.ArraySource(
        images, labels, class_names=sources["train"].class_names, name=sources["train"].name,
        split=f"{sources['train'].split}, spoiled",
    )  # fmt: skip

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        problem = classification(
            own, net, train=lambda: sources[name], held_out=lambda: sources["validation"]
        )
        variables = train(own, inner, problem, "eval/accuracy").variables
        parts = {**sources, "train": spoiled}
        known = {
            part: np.asarray(logits_of(own, net, variables, parts[part])[0], np.float32)
            for part in arrays
        }
        right = float(np.mean(known["test"].argmax(1) == arrays["test"]["label"]))
        return {"accuracy": right}, (known, right)

    _, (known, right) = for_each(run, ["teacher"], measure)["teacher"]
    Progress().note(f"the teacher is right on {right:.1%} of test images")
    chances = jax.nn.softmax(jnp.asarray(known["train"]))
    means = np.asarray(teacher_means(chances, jnp.asarray(labels), classes=config.classes))
    held = arrays["validation"]
    return Bed(
        {"image": images, "label": labels, "teacher": known["train"], "group": group},
        {
            "image": held["image"], "label": held["label"], "teacher": known["validation"],
            "group": np.full(len(held["label"]), CLEAN, np.int32),
        },
        arrays["test"], means, right,
    )  # fmt: skip


PARTS = ("teacher", "train", "validation", "test")
"""Keys of `config.data` with splits."""
