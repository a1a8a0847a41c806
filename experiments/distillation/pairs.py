"""Pairs of a teacher's family and a student's: what students name rightly, and differences."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.common.claims import with_bounds
from experiments.distillation import students
from experiments.distillation.families import Bed
from experiments.distillation.students import Setting, Students
from rml.ops import t_interval

Pair = tuple[str, str]
"""A teacher's family and its student's."""
Programs = Mapping[str, list[Students]]
"""By family of students its programs."""
Right = dict[str, dict[Pair, np.ndarray]]
"""By side and pair whether each test image is named rightly."""


def choose(config: Any, programs: Programs, sides: Iterable[str]) -> dict[str, Setting]:
    """By side its setting with the best accuracy on validation images, one for all pairs."""
    trained = [own for family in programs.values() for own in family]
    return {side: students.best(config, side, trained) for side in sides}


def named(
    config: Any, bed: Bed, programs: Programs, wanted: Mapping[str, tuple[str, Setting]],
    pairs: Iterable[Pair],
) -> Right:  # fmt: skip
    """Reads test images by students of every pair.

    Args:
      config: The run's config.
      bed: What they are judged on.
      programs: The students.
      wanted: Side and its setting, by name; those without a teacher are the same in all pairs.
      pairs: The pairs.
    """
    images = {
        family: students.named(config, bed, family, own, wanted.values())
        for family, own in programs.items()
    }
    return {
        name: {
            (teacher, student): images[student][
                (*key, teacher if (*key, teacher) in images[student] else None)
            ]
            for teacher, student in pairs
        }
        for name, key in wanted.items()
    }


def compared(right: Right, differences: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Accuracies over all pairs and of each, and differences with intervals over images."""
    means = {side: np.mean(list(own.values()), axis=0) for side, own in right.items()}
    metrics = {f"accuracy_{side}": float(own.mean()) for side, own in means.items()}
    for side, own in right.items():
        metrics |= {f"accuracy_{side}_{t}_{s}": float(x.mean()) for (t, s), x in own.items()}
    for name, (first, second) in differences.items():
        metrics |= with_bounds(name, t_interval(means[first] - means[second]))
    return metrics


def tried(config: Any, chosen: Mapping[str, Setting]) -> dict[str, float]:
    """Tells how many settings each side has, which was chosen, and whether its rate is an end."""
    metrics: dict[str, float] = {}
    for side, setting in chosen.items():
        metrics[f"tries_{side}"] = len(students.settings(config, side))
        metrics[f"rate_at_edge_{side}"] = students.rate_at_edge(config, side, setting)
        metrics |= {
            f"chosen_{side}_{key}": value
            for key, value in zip(students.keys(config, side), setting, strict=True)
        }
    return metrics
