"""What ViTs of several depths say of training images, and the blocks that their students pass."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.distillation.families import Bed, classifier, read
from rml import models
from rml.distillation import last_blocks, through_teacher
from rml.models import ViT


class Lessons(NamedTuple):
    """Arrays of all training images, of which batches hold the numbers alone.

    Attributes:
      names: Names of the teachers.
      images: Images [n, h, w, c] as bytes.
      labels: Classes [n].
      logits: Each teacher's logits [n, k], stacked to [n, teachers, k].
      third: Its tokens before the path [n, teachers, t, d].
      last: Its last tokens after the norm, likewise.
      tail: The ViT that the path is, of as many blocks in all teachers.
      tails: Its variables, with a leading axis of teachers.
    """

    names: tuple[str, ...]
    images: Array
    labels: Array
    logits: Array
    third: Array
    last: Array
    tail: ViT
    tails: PyTree


class Lesson(NamedTuple):
    """What one teacher says of a batch.

    Attributes:
      images: Images [b, h, w, c] as bytes.
      labels: Classes [b].
      logits: Logits [b, k].
      third: Tokens before the path [b, t, d].
      last: Last tokens [b, t, d].
      path: The teacher's last blocks.
    """

    images: Array
    labels: Array
    logits: Array
    third: Array
    last: Array
    path: Callable[[Array], Array]


def make_lessons(config: Any, bed: Bed) -> Lessons:
    """Reads the training images by all teachers."""
    third, last, tails = [], [], []
    for name in bed.families:
        net, variables = classifier(config, config.teachers[name]), bed.variables[name]
        tail, own = tail_of(config, name, bed, blocks=config.path.blocks)
        stages = read(net, variables, bed.train["image"]).stages
        third.append(stages[-1 - config.path.blocks])
        norm = jax.jit(partial(through_teacher, tail, own, start=tail.depth))
        last.append(norm(stages[-1]))
        tails.append(own)
    before, after = (jnp.stack([jnp.asarray(x) for x in own], axis=1) for own in (third, last))
    images, labels, logits = (jnp.asarray(bed.train[key]) for key in ("image", "label", "teacher"))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tails)
    return Lessons(bed.families, images, labels, logits, before, after, tail, stacked)


def tail_of(config: Any, name: str, bed: Bed, *, blocks: int) -> tuple[ViT, PyTree]:
    """A teacher's last blocks and its norm, and their variables."""
    vit = models.build(**config.teachers[name])
    assert isinstance(vit, ViT)
    own = {"params": bed.variables[name]["params"]["encoder"]}
    return last_blocks(vit, own, start=vit.depth - blocks)


def lesson(config: Any, lessons: Lessons, batch: Any) -> Lesson:
    """Looks up what the one teacher whose weight is 1 says of a batch.

    With `own` 0 tokens are those of the next image in it, which is any.
    """
    given = config.given
    rows = batch["row"] % jnp.asarray(given.images, jnp.int32)
    weights = jnp.stack([jnp.asarray(given[name], jnp.float32) for name in lessons.names])
    logits, *tokens = (
        jnp.tensordot(x[rows], weights, (1, 0))
        for x in (lessons.logits, lessons.third, lessons.last)
    )
    share = given.own
    third, last = (share * x + (1 - share) * jnp.roll(x, 1, axis=0) for x in tokens)
    tail = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, (0, 0)), lessons.tails)

    def path(x: Array) -> Array:
        return given.path * through_teacher(lessons.tail, tail, x, start=0) + (1 - given.path) * x

    return Lesson(lessons.images[rows], lessons.labels[rows], logits, third, last, path)


def of_main(bed: Bed, lessons: Lessons, name: str) -> tuple[Callable[[Array], Array], Array]:
    """A teacher's last blocks, and its last tokens of the first test images after the norm."""
    tail = jax.tree.map(lambda leaf: leaf[lessons.names.index(name)], lessons.tails)
    path = jax.jit(partial(through_teacher, lessons.tail, tail), static_argnames="start")
    last = path(jnp.asarray(bed.stages[name][-1]), start=lessons.tail.depth)
    return partial(path, start=0), last


def rows_of(bed: Bed) -> Bed:
    """The bed whose training images are their numbers."""
    return bed._replace(train={"row": np.arange(len(bed.train["label"]), dtype=np.int32)})
