"""Tasks that models are merged over: classes of images or of texts, in three parts."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.images import open_images
from experiments.merging.networks import PADDING, of_texts, reads_texts
from rml import data
from rml.data import tokens
from rml.data.glyphs import BLOCKS, unicode_block
from rml.errors import UserError, unknown

PARTS = ("train", "validation", "test")
GLYPHS = "glyphs"


class ImageTask(NamedTuple):
    """One task; its images may be texts, as tokens [n, t].

    Attributes:
      train: Images that an expert is trained on.
      validation: Images that options are chosen on.
      test: Images that are reported.
    """

    train: data.ArraySource
    validation: data.ArraySource
    test: data.ArraySource


class Images(NamedTuple):
    """Images of several tasks, one after another, or texts.

    Attributes:
      image: uint8 [n, h, w, c], or tokens of texts, int32 [n, t].
      label: Class within the task, int32 [n].
      task: Place of the task, int32 [n].
    """

    image: jax.Array
    label: jax.Array
    task: jax.Array


def check_named(config: Any, *keys: str) -> None:
    """Raises `UserError` unless keys of a config, such as "few.targets", name its tasks.

    A key has the name of one task, or those of one or more, each once.
    """
    for key in keys:
        value = config
        for part in key.split("."):
            value = value[part]
        names = [value] if isinstance(value, str) else list(value)
        for name in names:
            if name not in config.tasks:
                raise unknown(f"task of {key}", name, config.tasks)
        if not names or len(set(names)) < len(names):
            raise UserError(f"{key} is {tuple(names)}, expected one task or more, each once")


def check_unseen(config: Any) -> None:
    """Raises `UserError` unless `unseen` names some of a config's tasks, and not all."""
    for name in config.unseen:
        if name not in config.tasks:
            raise unknown("task of unseen", name, config.tasks)
    count, known = len(config.tasks), len(config.tasks) - len(set(config.unseen))
    if not 0 < known < count:
        raise UserError(f"unseen has {count - known} of {count} tasks, expected some")


def open_tasks(config: Any) -> dict[str, ImageTask]:
    """Opens the tasks that `config.tasks` names, in the order of their names.

    Each has the name of a data set, the split of each part, and for characters the Unicode blocks
    whose classes it takes; of them every second one, since the others are for pretraining. A task
    of texts names the features that hold text and class, and how many classes it takes: those with
    most texts in the part where they have fewest.

    Raises:
      UserError: A block is unknown, a part lacks a class, or a task has more classes than
        `head.classes`.
    """
    found = {}
    for name, options in sorted(config.tasks.items()):
        if reads_texts(config):
            parts = _of_texts(config, options)
        else:
            parts = [_part(config, options, part) for part in PARTS]
        count = parts[0].num_classes
        if count > config.head.classes:
            raise UserError(
                f"task {name} has {count} classes, expected at most head.classes, "
                f"{config.head.classes}"
            )
        for part, source in zip(PARTS, parts, strict=True):
            missing = np.setdiff1d(np.arange(count), source.labels)
            if len(missing):
                raise UserError(
                    f"tasks.{name}.{part} has no image of {source.class_names[missing[0]]!r}, "
                    "expected some of every class"
                )
        found[name] = ImageTask(*parts)
    return found


def background(config: Any, part: str) -> data.ArraySource:
    """Characters that the base is pretrained on: every first of two of each block.

    Args:
      config: The run's config, of which `data` is read.
      part: Key of `config.data` that holds the split.
    """
    source = _opened(config, config.data.name, config.data[part])
    return data.select_classes(source, _every_second(source, tuple(BLOCKS), first=0))


def draw_rows(count: int, most: int, seed: int) -> np.ndarray:
    """Rows drawn from `count`, at most `most`, in their order.

    Data sets are stored class by class in turns, so that rows at equal distances, or the first,
    would be of a few classes.
    """
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def joined(tasks: Mapping[str, ImageTask], part: str, most: int, seed: int = 0) -> Images:
    """Images of a part of all tasks, drawn from each.

    Args:
      tasks: Tasks, numbered in their order.
      part: A name of `PARTS`.
      most: Largest number of images of a task.
      seed: Seed of the draw.
    """
    sources = [getattr(task, part).arrays() for task in tasks.values()]
    chosen = [draw_rows(len(own["label"]), most, seed) for own in sources]
    image, label = (
        np.concatenate([own[key][rows] for own, rows in zip(sources, chosen, strict=True)])
        for key in ("image", "label")
    )
    numbers = np.repeat(np.arange(len(sources)), [len(rows) for rows in chosen])
    return Images(*(jax.numpy.asarray(x) for x in (image, label.astype(np.int32), numbers)))


def few_of_each(source: data.ArraySource, count: int, seed: int) -> data.ArraySource:
    """A few images of each class, drawn; more of them are those and others."""
    arrays = source.arrays()
    order = np.random.default_rng(seed).permutation(len(source))
    rows = order[data.first_of_each_class(arrays["label"][order], count)]
    return data.ArraySource(
        arrays["image"][rows], arrays["label"][rows], class_names=source.class_names,
        name=source.name, split=f"{source.split}, {count} of each class",
    )  # fmt: skip


def _of_texts(config: Any, options: Any) -> list[data.ArraySource]:
    """The parts of a task of texts: tokens and classes of the classes that it takes."""
    keys = (config.model.name, config.tokens.length, config.data.data_dir)
    opened = [
        _read_texts(options.name, options[part], options.text, options.label, *keys)
        for part in PARTS
    ]
    counts = np.min([np.bincount(own.labels, minlength=own.num_classes) for own in opened], 0)
    most = np.argsort(-counts, kind="stable")[: min(options.classes, np.count_nonzero(counts))]
    return [data.select_classes(own, np.sort(most)) for own in opened]


@cache
def _read_texts(
    name: str, split: str, text: str, label: str, model: str, length: int, data_dir: Any
) -> data.ArraySource:
    """A split of labelled texts as tokens; what does not fit is cut off their ends."""
    found = data.load_text(name, split, text_key=text, label_key=label, data_dir=data_dir)
    rows = tokens.encode(of_texts(model).tokenizer, found.texts, max_length=length)
    return data.ArraySource(
        tokens.pad(rows, width=length, pad_id=PADDING)[0], found.labels,
        class_names=found.class_names, name=name, split=split,
    )  # fmt: skip


def _part(config: Any, options: Any, part: str) -> data.ArraySource:
    source = _opened(config, options.name, options[part])
    blocks: Sequence[str] = options.get("scripts", ())
    for block in blocks:
        if block not in BLOCKS:
            raise unknown("Unicode block", block, BLOCKS)
    classes = _every_second(source, blocks, first=1) if blocks else np.arange(source.num_classes)
    return data.select_classes(source, classes)


def _every_second(source: data.Source, blocks: Sequence[str], *, first: int) -> np.ndarray:
    """Classes of some blocks, each block's by turns for pretraining and for a task."""
    of = np.array([unicode_block(name) for name in source.class_names])
    return np.concatenate([np.flatnonzero(of == block)[first::2] for block in blocks])


def _opened(config: Any, name: str, split: str) -> data.Source:
    shape = tuple(config.data.image_shape)
    return _read(name, split, config.data.data_dir, shape, config.data.image_dtype)


@cache
def _read(name: str, split: str, data_dir: Any, shape: tuple[int, ...], dtype: str) -> data.Source:
    """A source as `open_images` opens it, decoded once: several tasks share one data set."""
    from ml_collections import ConfigDict

    own = dict(name=name, data_dir=data_dir, image_shape=shape, image_dtype=dtype, read=split)
    source = open_images(
        ConfigDict(dict(data=own, experiment="merging.bed")), "read", labelled=True
    )
    arrays = source.arrays()
    return data.ArraySource(
        arrays["image"], arrays["label"], class_names=source.class_names, name=name, split=split
    )
