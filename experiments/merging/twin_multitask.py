"""One model of all tasks of a bed, fine-tuned on as many images as the experts together."""

from typing import Any

import jax
import numpy as np

from experiments.common.comparison import for_each
from experiments.merging.bed import Bed, repeated, take
from experiments.merging.finetuning import finetuned
from rml import data
from rml.training import RunDirectory


def multitask(bed: Bed, run: RunDirectory) -> Any:
    """Fine-tunes the base on all tasks, by one frozen head over the classes of all of them."""
    own = bed.config.copy_and_resolve_references()
    own.train.batch_size *= len(bed.tasks)
    heads = bed.heads.reshape(1, -1, bed.heads.shape[2])
    sources = [[together(bed, part)] for part in ("train", "validation")]

    def train(_: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        start = repeated(bed.base, 1)
        return {}, finetuned(own, inner, *sources, starts=start, base=bed.base, heads=heads)

    return take(for_each(run, ["multitask"], train)["multitask"][1], 0)


def together(bed: Bed, part: str) -> data.ArraySource:
    """The images of a part of all tasks, those of small tasks repeated until all are as large."""
    arrays = [getattr(own, part).arrays() for own in bed.tasks.values()]
    most, classes = max(len(own["label"]) for own in arrays), bed.heads.shape[1]
    rows = [np.resize(np.arange(len(own["label"])), most) for own in arrays]
    whole: list[dict[str, Any]] = [
        jax.tree.map(lambda x, r=r: x[r], own) for own, r in zip(arrays, rows, strict=True)
    ]
    return data.ArraySource(
        np.concatenate([own["image"] for own in whole]),
        np.concatenate([own["label"] + i * classes for i, own in enumerate(whole)]),
        class_names=[f"{name} {i}" for name in bed.tasks for i in range(classes)],
        name="tasks", split=part,
    )  # fmt: skip
