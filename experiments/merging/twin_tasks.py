"""Twin-merging of fewer tasks: how its gain grows with their number, and tasks it never saw."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.common.claims import with_bounds
from experiments.merging.bed import Bed
from experiments.merging.concrete_masks import of_tasks
from experiments.merging.finetuning import features
from experiments.merging.judging import Part
from experiments.merging.tasks import check_unseen
from experiments.merging.twin_parts import Merged, by_task_heads, merged, of_static, of_weights
from rml.errors import UserError
from rml.ops import t_interval


class Gaps(NamedTuple):
    """What is gained over tuned task arithmetic of the same tasks.

    Attributes:
      rows: Places of the images of these tasks.
      twin: Gain of every image by twin-merging.
      uniform: Gain by equal weights of the same vectors.
    """

    rows: np.ndarray
    twin: np.ndarray
    uniform: np.ndarray


def check_tasks(config: Any) -> None:
    """Raises `UserError` where tasks that stay unseen, or numbers of tasks, are not there."""
    check_unseen(config)
    for count in config.counts:
        if not 1 <= count <= len(config.tasks):
            raise UserError(f"counts has {count}, expected 1 to {len(config.tasks)} tasks")


def of_counts(
    config: Any, whole: Merged, validation: Part, test: Part
) -> tuple[dict[int, Gaps], Merged]:
    """Gaps by number of tasks, nested, those of `unseen` last; and the experts without these."""
    names = list(whole.bed.tasks)
    unseen = [names.index(name) for name in config.unseen]
    known = [i for i in range(len(names)) if i not in unseen]
    order = [*np.random.default_rng(config.seed).permutation(known).tolist(), *unseen]
    found, models = {}, {len(names): whole}
    for count in sorted({*config.counts, len(known), len(names)}):
        places = sorted(order[:count])
        if count not in models:
            models[count] = merged(config, whole.bed, validation, places)
        found[count] = _gaps(models[count], test, places)
    return found, models[len(known)]


def slopes(gaps: Mapping[int, Gaps]) -> dict[str, float]:
    """How much of normalised accuracy a further task adds to the gaps, with intervals."""
    counts = np.array(sorted(gaps), float)
    far = counts - counts.mean()
    total = max(own.rows.max() for own in gaps.values()) + 1
    metrics: dict[str, float] = {}
    for name, kind in (("gap_slope", "twin"), ("uniform_gap_slope", "uniform")):
        values = np.zeros(total)  # of every image, so that their mean is the slope
        for count, share in zip(counts, far / np.sum(far**2), strict=True):
            own = gaps[int(count)]
            values[own.rows] += share * getattr(own, kind) * total / len(own.rows)
        metrics |= with_bounds(name, t_interval(values))
    return metrics


def of_unseen(config: Any, bed: Bed, few: Merged, test: Part) -> dict[str, float]:
    """Gains over tuned task arithmetic on tasks that neither vectors nor the router know."""
    names = list(bed.tasks)
    unseen = [names.index(name) for name in config.unseen]
    alone = bed._replace(heads=bed.heads[np.array(unseen)])
    part = of_tasks(test, unseen)
    weights = few.weights(part.images)
    order = np.random.default_rng(config.seed).permutation(len(weights))
    plain = by_task_heads(alone, part, features(bed.module, few.tuned, part.images.image))
    metrics: dict[str, float] = {}
    for name, own in (("unseen", weights), ("unseen_shuffled", weights[order])):
        found = by_task_heads(alone, part, of_weights(few.bed, few.twin, own, part.images))
        gains = found.normalised - plain.normalised
        metrics |= with_bounds(f"{name}_over_arithmetic", t_interval(gains))
    return metrics


def _gaps(model: Merged, test: Part, places: list[int]) -> Gaps:
    part, bed = of_tasks(test, places), model.bed
    rows = np.flatnonzero(np.isin(np.asarray(test.images.task), places))
    equal = jnp.full(len(places), 1 / len(places))
    found = [
        by_task_heads(bed, part, own).normalised
        for own in (
            of_weights(bed, model.twin, model.weights(part.images), part.images),
            of_static(bed, model.twin, equal, part.images),
            features(bed.module, model.tuned, part.images.image),
        )
    ]
    return Gaps(rows, found[0] - found[2], found[1] - found[2])
