"""What ScaleKD is compared with, and what is left out of it; each side has as many tries."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.distillation.students import RATE, Changes, Setting, given, settings

AGAIN = 1_000
"""What is added to the seed of a student that is trained once more."""


class Side(NamedTuple):
    """One method: what of `config.given` it changes.

    Attributes:
      key: Name in `config.given` that a setting gives a value to beside the learning rate.
      fixed: Values of others.
      kind: Kind of its students, see `scalekd_students.KINDS`.
      taught: Whether its students have a teacher.
    """

    key: str
    fixed: Mapping[str, float]
    kind: str = "linear"
    taught: bool = True


HALF = {"kd": 0.5}
SIDES = {
    "label": Side("smoothing", {}, taught=False),
    "kd": Side("kd", {}),
    "fitnet": Side("fitnet", {}),
    "ofa": Side("gamma", {"ofa": 1.0}, "exits"),
    "cosine": Side("strength", {**HALF, "alternative": 0.0, "third": 0.0}),
    "linear": Side("strength", HALF),
    "scalekd": Side("strength", HALF, "attention"),
    "direct": Side("strength", {**HALF, "alternative": 0.0}, "attention"),
    "alternative": Side("strength", {**HALF, "direct": 0.0}, "attention"),
    "pathless": Side("strength", {**HALF, "path": 0.0}, "attention"),
    "labelled": Side("strength", {}, "attention"),
    "flat": Side("strength", {**HALF, "scale": 1.0}, "attention"),
    "learned": Side("strength", HALF, "learned"),
    "traditional": Side("strength", {"alternative": 0.0}, "learned"),
}
"""Sides by name: the label alone, KD, features alone (FitNet), stages by exits (One-for-All), KD
with the cosine of the last stage by a linear map, and ScaleKD, with linear projectors in the place
of its own, with one view alone, without the teacher's blocks, without KD, with attention of scale
1, with learned queries at the last stage, and in the public code's traditional setting: these with
the direct view and no KD."""
FEATURES = ("fitnet", "ofa")
"""Other sides that teach by stages of the student, of which the better is compared."""
SIZED = ("kd", "fitnet", "scalekd")
"""Sides whose students have teachers of every size."""


def depths(config: Any) -> dict[str, int]:
    """By name the depth of each teacher, the least first."""
    found = {name: own.depth for name, own in config.teachers.items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def main(config: Any) -> str:
    """The deepest teacher, which all sides have."""
    return list(depths(config))[-1]


def changes_of(config: Any, kind: str) -> Changes:
    """By name what the students of a kind change, for all settings of its sides."""
    return {
        (side, setting, main(config) if own.taught else None): change(config, side, setting)
        for side, own in SIDES.items()
        if own.kind == kind
        for setting in settings(config, side)
    }


def further(config: Any, kind: str, chosen: Mapping[str, Setting]) -> Changes:
    """The same for students that have the chosen settings: of other teachers, and variants.

    Variants are ScaleKD with another seed and with tokens of other images, and ScaleKD and the
    label alone on few images.
    """
    found: Changes = {
        (side, chosen[side], teacher): change(config, side, chosen[side], teacher)
        for side in SIZED
        if SIDES[side].kind == kind
        for teacher in list(depths(config))[:-1]
    }
    own, label = chosen["scalekd"], chosen["label"]
    if kind == "linear":
        few = {"given.images": config.quarter}
        return found | {("few_label", label, None): change(config, "label", label) | few}
    if kind != "attention":
        return found
    plain = change(config, "scalekd", own)
    variants = {
        "again": {"seed": config.seed + AGAIN},
        "shuffled": {"given.own": 0.0},
        "few_scalekd": {"given.images": config.quarter},
    }
    return found | {(name, own, main(config)): plain | other for name, other in variants.items()}


def change(config: Any, side: str, setting: Setting, teacher: str | None = None) -> dict[str, Any]:
    """What a student of a setting changes; its teacher is the main one if not given."""
    own = SIDES[side]
    tried = dict(zip(config.tries[side], setting, strict=True))
    rate = tried.pop(RATE)
    values = {**own.fixed, **tried}
    values["label"] = 1 - values.get("kd", 0.0)
    taught = (teacher or main(config)) if own.taught else None
    weights = {name: float(name == taught) for name in config.teachers}
    return given(config, {**values, **weights}) | {f"optimizer.{RATE}": rate}
