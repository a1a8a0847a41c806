"""What TGeo-KD is compared with: rules and learned ratios, each with equally many tries."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.many import replaced
from experiments.distillation.noisy import Bed, classifier
from experiments.distillation.tgeokd_students import Students, train_together
from experiments.distillation.together import named_rightly
from rml.training import RunDirectory

AGAIN = 1_000
"""What is added to the seed of each further student of a setting."""
RULES = ("constant", "linear", "cosine", "correctness", "entropy", "wls", "dkd")
"""Rules by which ratios are given; DKD is another loss, at equal weights."""
SCALAR = dict.fromkeys(("relations.points", "relations.sg", "relations.st", "relations.tg",
                        "relations.inter"), 0.0)  # fmt: skip
"""Nothing is read: of the network its offsets are left, one number for all images."""
LEARNED = {"trilateral": {}, "scalar": SCALAR}
"""Learned ratios, and what of the config they change."""
VARIANTS: dict[str, dict[str, Any]] = {
    "sg_tg": {"relations.st": 0.0, "relations.inter": 0.0},
    "sg_tg_st": {"relations.inter": 0.0},
    "no_points": {"relations.points": 0.0},
    "no_points_sg_tg": {"relations.points": 0.0, "relations.st": 0.0, "relations.inter": 0.0},
    "no_points_sg_tg_st": {"relations.points": 0.0, "relations.inter": 0.0},
    "shuffled": {"relations.own": 0.0},
    "again": {},
    "signed": {"relations.form": "signed"},
    "norm": {"relations.form": "norm"},
}
"""TGeo-KD with the options that were chosen for it, but for these; "again" has other seeds. The
side between S and T can be made of these points: without both nothing tells of it."""
KD = ("constant", 0.9, 4.0)
"""Ratio and temperature that nobody has chosen: those of the public benchmark of CRD's authors."""
KD_AGAIN = ("again", *KD[1:])
"""The same with other seeds."""
Name = Any
Changes = Mapping[Name, Mapping[str, Any]]


class Trained(NamedTuple):
    """Students of one program, some of each setting.

    Attributes:
      changes: By name of a setting, what of the config it changes.
      students: All of them; those of a setting stand together.
      right: Whether each names each test image rightly, [students, n].
    """

    changes: Changes
    students: Students
    right: np.ndarray

    def rows(self, name: Name) -> slice:
        """Where the students of a setting stand."""
        each = len(self.right) // len(self.changes)
        first = list(self.changes).index(name) * each
        return slice(first, first + each)

    def accuracy(self, name: Name) -> float:
        """Mean accuracy of a setting's students on validation images."""
        return float(self.students.accuracy[self.rows(name)].mean())

    def named(self, name: Name) -> np.ndarray:
        """Of each test image the share of a setting's students that name it rightly."""
        return np.asarray(self.right[self.rows(name)].mean(0))

    def parts(self, name: Name) -> tuple[Any, Any]:
        """Parameters of a setting's students, and of their ratios."""
        rows = self.rows(name)
        params, omega, _ = self.students
        return jax.tree.map(lambda leaf: leaf[rows], (params, omega))

    def best(self, names: Iterable[Name]) -> Name:
        """The setting with the best accuracy on validation images."""
        return max(names, key=self.accuracy)


def trained(
    config: Any, run: RunDirectory, name: str, changes: Changes, bed: Bed, *, learned: bool
) -> Trained:
    """Trains `config.students` students of each setting, of different seeds, as one program."""
    configs = [
        replaced(config, {**change, "seed": change.get("seed", config.seed) + AGAIN * i})
        for change in changes.values()
        for i in range(config.students)
    ]
    students = train_together(config, run, name, configs, bed, learned=learned)
    right = named_rightly(classifier(config), {"params": students.params}, bed.test)
    return Trained(changes, students, right)


def of_rules(config: Any) -> dict[Name, dict[str, Any]]:
    """Settings of all rules: by rule, setting and temperature what of the config they change."""
    found = {}
    for kind in RULES:
        for setting in config.tries.get(kind, config.tries.constant):
            for temperature in config.tries.temperature:
                weights = {f"given.{other}": float(other == kind) for other in RULES}
                found[kind, setting, temperature] = weights | {
                    "given.setting": setting, "loss.temperature": temperature,
                }  # fmt: skip
    other = {"seed": config.seed + AGAIN * config.students}
    return found | {KD_AGAIN: found[KD] | other}


def of_learned(config: Any) -> dict[Name, dict[str, Any]]:
    """Settings of learned ratios likewise, by kind, rate of the network, and temperature."""
    return {
        (kind, rate, temperature): own | {"learned.rate": rate, "loss.temperature": temperature}
        for kind, own in LEARNED.items()
        for rate in config.tries.rate
        for temperature in config.tries.temperature
    }


def kind(changes: Changes, wanted: str) -> list[Name]:
    """The settings of one kind."""
    return [name for name in changes if name[0] == wanted]


def of_variants(config: Any, chosen: Mapping[str, Any], form: str) -> dict[Name, dict[str, Any]]:
    """TGeo-KD's variants whose relations have a form; one program trains those of a form."""
    other = {"again": {"seed": config.seed + AGAIN * config.students}}
    return {
        name: {"relations.form": "squared", **chosen, **own, **other.get(name, {})}
        for name, own in VARIANTS.items()
        if own.get("relations.form", "squared") == form
    }
