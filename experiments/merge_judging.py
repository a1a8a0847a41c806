"""Data with labels that merging reads and is judged by, and how right encoders are on it."""

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np

from rml import data, evaluation
from rml.errors import UserError

NEIGHBOURS = 10
KEYS = ("text", "label")
"""What is said of a task of texts: its features."""


def task_of(text: str, options: argparse.Namespace) -> argparse.Namespace:
    """The options of a command for the data of one task, `NAME` or `NAME,text=..,label=..`."""
    name, *rest = text.split(",")
    said = dict(part.partition("=")[::2] for part in rest)
    if not all(key in KEYS and value for key, value in said.items()):
        raise UserError(f"--task is {text!r}, expected NAME, or NAME,text=FEATURE,label=FEATURE")
    return argparse.Namespace(**vars(options) | dict.fromkeys(KEYS, "") | said | {"data": name})


def tasks_of(options: argparse.Namespace, count: int, least: int) -> list[argparse.Namespace]:
    """The options for the data of each encoder's own task.

    Args:
      options: Those of a command.
      count: Number of encoders.
      least: The fewest examples of a task.

    Raises:
      UserError: There is not one task for each encoder, one is not written as it must be, or there
        are too few examples.
    """
    if len(options.task) != count:
        raise UserError(
            f"--task is given {len(options.task)} times, expected {count}: data of the own task "
            "of each encoder, in their order"
        )
    if options.examples < least:
        raise UserError(
            f"--examples={options.examples}, expected at least {least}: the last of every {least} "
            "are held out"
        )
    return [task_of(text, options) for text in options.task]


def spread(encoder: Any, task: argparse.Namespace) -> tuple[Any, np.ndarray]:
    """Images or texts at equal distances in the split of a task that is read, and their labels."""
    inputs, labels, _ = labelled(encoder, argparse.Namespace(**vars(task) | {"split": task.read}))
    if not 1 <= task.examples <= len(inputs):
        raise UserError(
            f"--examples={task.examples}, expected 1 to the {len(inputs)} {encoder.kind} of "
            f"{task.read}"
        )
    rows = np.linspace(0, len(inputs), task.examples, endpoint=False).astype(int)
    if encoder.kind == "texts":
        return [inputs[i] for i in rows], labels[rows]
    images = np.concatenate([np.asarray(inputs[i : i + 1]) for i in rows])
    return images, labels[rows]  # which are known of images that were read


def held_out(count: int, every: int) -> np.ndarray:
    """Which of so many examples are held out, the last of every few."""
    return np.arange(count) % every == every - 1


def told(judged: dict[str, Any], named: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Lines that say how right each expert and what was made of all are on its own task."""
    lines = []
    for task, (name, own) in zip(options.task, named.items(), strict=True):
        of_task = task_of(task, options)
        right = {key: accuracy(one, of_task) for key, one in {name: own, **judged}.items()}
        each = ", ".join(f"{key} {share:.1%}" for key, share in right.items())
        lines.append(f"{task}: {each} are right by nearest neighbours")
    return lines


def accuracy(encoder: Any, options: argparse.Namespace) -> float:
    """Accuracy of nearest neighbours on a random half of images or texts; the other half votes."""
    inputs, labels, classes = labelled(encoder, options)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = jnp.asarray(encoder(inputs)[order]), jnp.asarray(labels[order])
    found = evaluation.knn_accuracy(
        x[::2], y[::2], x[1::2], y[1::2], num_classes=classes, k=min(NEIGHBOURS, len(x[::2]))
    )
    return float(found)


def check_data(encoder: Any, options: argparse.Namespace, *splits: str) -> None:
    """Opens splits of the data that options name: what is wrong is told before the work.

    Args:
      encoder: An encoder that takes them.
      options: Those of a command, or of one of its tasks.
      *splits: Splits.

    Raises:
      UserError: A split does not exist, cannot be read, or has no labels.
    """
    for split in splits:
        opened(encoder, argparse.Namespace(**vars(options) | {"split": split}))


def labelled(encoder: Any, options: argparse.Namespace) -> tuple[Any, Any, int]:
    """What an encoder is judged by, as it takes it: images or texts, their labels, classes."""
    found = opened(encoder, options)
    if encoder.kind == "texts":
        return found.texts, found.labels, len(found.class_names)
    images = encoder.read(found)
    return images, np.asarray(images.labels), found.num_classes


def opened(encoder: Any, options: argparse.Namespace) -> Any:
    """Opens the texts that options name, or the source of their images, of which none is read.

    Raises:
      UserError: They cannot be opened, or are without labels.
    """
    where = encoder.config["data"].get("data_dir")
    if encoder.kind == "texts":
        return data.load_text(
            options.data, options.split, text_key=options.text, label_key=options.label,
            data_dir=where,
        )  # fmt: skip
    for key in KEYS:
        if getattr(options, key):
            raise UserError(f"--{key} is for encoders of texts, these are of {encoder.kind}")
    return data.require_labels(
        data.load(options.data, options.split, data_dir=where), "experiments.merge"
    )
