"""What One-for-All is compared with: losses on logits and on features, each with as many tries."""

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

from experiments.distillation.students import Changes, given, settings

AGAIN = 1_000
"""What is added to the seed of a student that is trained once more."""
HINTS = ("fitnet", "rkd")
"""Sides that read features."""


class Side(NamedTuple):
    """One method: what of `config.given` it changes for each of its settings.

    Attributes:
      keys: Names in `config.given` that a setting gives values to.
      fixed: Values of others.
      exits: Whether its students have exits.
      taught: Whether its students have a teacher.
    """

    keys: tuple[str, ...]
    fixed: Mapping[str, float]
    exits: bool = False
    taught: bool = True


SIDES = {
    "label": Side(("smoothing",), {}, taught=False),
    "kd": Side(("kd", "temperature"), {}),
    "dkd": Side(("others", "temperature"), {"dkd": 0.5}),
    "fitnet": Side(("fitnet",), {}),
    "rkd": Side(("rkd",), {}),
    "enhanced": Side(("gamma",), {"enhanced": 1.0}),
    "hard": Side(("exits",), {"hard": 1.0}, exits=True, taught=False),
    "ofa": Side(("gamma",), {"enhanced": 1.0, "exits": 1.0}, exits=True),
    "paper": Side(("gamma",), {"enhanced": 1.0, "exits": 1.0, "paper": 1.0}, exits=True),
}
"""Sides by name; "enhanced" is One-for-All without exits, "hard" exits that learn labels alone,
"paper" the enhancement on the label alone."""
VARIANTS: dict[str, tuple[int, dict[str, float]]] = {
    "again": (AGAIN, {}), "shuffled": (0, {"own": 0.0}),
}  # fmt: skip
"""One-for-All at γ = 1: with another seed, and with what the teacher says of other images."""


def changes_of(config: Any, family: str, *, exits: bool) -> Changes:
    """By name what the students of a family change; one program trains those with exits."""
    found: Changes = {}
    teachers = [name for name in config.teachers if name != family]
    for side, own in SIDES.items():
        if own.exits != exits:
            continue
        for setting, teacher in product(settings(config, side), teachers if own.taught else [None]):
            values = {**own.fixed, **dict(zip(own.keys, setting, strict=True))}
            # What is mixed has the share of its weight; other losses are added to the label's.
            if side in ("kd", "dkd"):
                values["label"] = 1 - values[side]
            found[side, setting, teacher] = given(config, {**values, **weights(config, teacher)})
    if exits:
        for (name, (more, other)), teacher in product(VARIANTS.items(), teachers):
            values = {**SIDES["ofa"].fixed, "gamma": 1.0, **other}
            seed = {"seed": config.seed + more}
            found[name, (1.0,), teacher] = (
                given(config, {**values, **weights(config, teacher)}) | seed
            )
    return found


def weights(config: Any, teacher: str | None) -> dict[str, float]:
    """The weight of each family's teacher: 1 of a student's own."""
    return {name: float(name == teacher) for name in config.teachers}
