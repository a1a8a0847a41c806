"""What One-for-All is compared with: losses on logits and on features, each with as many tries."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from experiments.distillation.students import RATE, Changes, Setting, given, keys, settings
from experiments.ranges import Range

AGAIN = 1_000
"""What is added to the seed of a student that is trained once more."""
HINTS = ("fitnet", "rkd", "cc", "crd")
"""Sides that read features."""
ALONE = ("rkd_distance", "rkd_angle")
"""The terms of RKD alone; with One-for-All stands their sum."""
SHARE, POSITIVE = Range(high=1), Range(above=True)
RANGES = {
    "given.own": SHARE, "given.paper": SHARE, "given.hard": SHARE, "tries.kd.kd": SHARE,
    "tries.label.smoothing": SHARE, "tries.enhanced.gamma": POSITIVE, "tries.ofa.gamma": POSITIVE,
}  # fmt: skip
"""Of values that configs of such students have."""


class Side(NamedTuple):
    """One method: what of `config.given` it changes for each of its settings.

    Attributes:
      keys: Names in `config.given` that a setting gives values to.
      fixed: Values of others.
      kind: Kind of its students, see `ofakd_students.KINDS`.
      taught: Whether its students have a teacher.
      terms: Weights of the losses that the one key is a common factor of, where it is such.
    """

    keys: tuple[str, ...]
    fixed: Mapping[str, float]
    kind: str = "logits"
    taught: bool = True
    terms: Mapping[str, float] = {}

    def values(self, setting: Sequence[float]) -> dict[str, float]:
        """What of `config.given` a setting changes, but for the teacher."""
        found = dict(zip(self.keys, setting, strict=True))
        if self.terms:
            (factor,) = setting
            found = {name: factor * weight for name, weight in self.terms.items()}
        return {**self.fixed, **found}


SIDES = {
    "label": Side(("smoothing",), {}, taught=False),
    "kd": Side(("kd", "temperature"), {}),
    "dkd": Side(("others", "temperature"), {"dkd": 0.5}),
    "dist": Side(("dist",), {}),
    **{name: Side((name,), {}, "features") for name in ("fitnet", *ALONE, "cc", "crd")},
    "rkd": Side(("rkd",), {}, "features", terms={"rkd_distance": 25.0, "rkd_angle": 50.0}),
    "enhanced": Side(("gamma",), {"ofa": 1.0}),
    "hard": Side(("exits",), {"hard": 1.0}, "exits", taught=False),
    "ofa": Side(("gamma",), {"ofa": 1.0, "exits": 1.0}, "exits"),
    "paper": Side(("gamma",), {"ofa": 1.0, "exits": 1.0, "paper": 1.0}, "exits"),
    "normalized": Side(("gamma",), {"ofa": 1.0, "exits": 1.0, "normalized": 1.0}, "exits"),
    "rising": Side(("gamma",), {"ofa": 1.0, "exits": 1.0, "rising": 1.0}, "exits"),
}
"""Sides by name; "rkd" has the weights of arXiv:1904.05068 times one factor, "enhanced" is
One-for-All without exits, "hard" exits that learn labels alone, "paper" the enhancement on the
label alone, "normalized" weights that sum to 1 for every γ, and "rising" a γ of each output, from 1
at the first exit to γ at the student's own logits."""
VARIANTS: dict[str, tuple[int, dict[str, float]]] = {
    "again": (AGAIN, {}), "shuffled": (0, {"own": 0.0}),
}  # fmt: skip
"""One-for-All at γ = 1: with another seed, and with what the teacher says of other images."""


def changes_of(config: Any, kind: str, teachers: Sequence[str]) -> Changes:
    """By name what the students of a family and a kind change, which are one program.

    Args:
      config: The run's config; sides are those that have tries.
      kind: The kind.
      teachers: Families of their teachers.
    """
    found: Changes = {}
    for side, own in SIDES.items():
        if own.kind != kind or side not in config.tries:
            continue
        for setting, teacher in product(settings(config, side), teachers if own.taught else [None]):
            tried = dict(zip(keys(config, side), setting, strict=True))
            values = own.values([tried[key] for key in own.keys])
            # What is mixed has the share of its weight; other losses are added to the label's.
            if side in ("kd", "dkd"):
                values["label"] = 1 - values[side]
            changed = given(config, {**values, **weights(config, teacher)})
            found[side, setting, teacher] = changed | rate(tried.get(RATE))
    return found


def variants_of(config: Any, teachers: Sequence[str]) -> Changes:
    """The same for One-for-All's variants, whose students have exits."""
    found: Changes = {}
    for (name, (more, other)), setting, teacher in product(
        VARIANTS.items(), plain(config), teachers
    ):
        values = {**SIDES["ofa"].fixed, "gamma": 1.0, **other}
        own = given(config, {**values, **weights(config, teacher)}) | rate(*setting[1:])
        found[name, setting, teacher] = own | {"seed": config.seed + more}
    return found


def repeated(config: Any, side: str, found: Changes) -> Changes:
    """The same students of a side once more, with another seed and called `<side>_again`."""
    return {
        (f"{side}_again", setting, teacher): change | {"seed": config.seed + AGAIN}
        for (name, setting, teacher), change in found.items()
        if name == side
    }


def plain(config: Any) -> list[Setting]:
    """The settings of One-for-All that enhance nothing."""
    return [setting for setting in settings(config, "ofa") if setting[0] == 1.0]


def rate(given: float | None = None) -> dict[str, float]:
    """What a learning rate changes in the config, if one is given."""
    return {} if given is None else {f"optimizer.{RATE}": given}


def weights(config: Any, teacher: str | None) -> dict[str, float]:
    """The weight of each family's teacher: 1 of a student's own."""
    return {name: float(name == teacher) for name in config.teachers}
