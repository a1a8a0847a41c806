"""Students of teachers of other families; all of one family and one kind are one program.

Students of one kind learn from logits, those of another from features, and those of the third have
exits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.distillation import taught
from experiments.distillation.families import Bed
from experiments.distillation.students import Changes, Students, network, train_students
from rml import models
from rml.distillation import ExitNetwork, Outputs
from rml.losses import smoothed_cross_entropy, target_enhanced_loss
from rml.training import RunDirectory, Task

KINDS: Mapping[str, tuple[str, ...]] = {
    "logits": ("kd", "dkd", "dist", "ofa"),
    "features": ("fitnet", "rkd_distance", "rkd_angle", "cc", "crd"),
    "exits": (),
}
"""By kind of students the methods that one of them may have; those with exits have their own."""


def with_exits(config: Any, family: str) -> ExitNetwork:
    """A student as it is trained with exits."""
    exits = models.Exits(config.classes, **config.exits)
    return ExitNetwork(models.build(**config.students[family]), config.classes, exits)


def exponents(config: Any, outputs: int) -> Array:
    """The exponent γ of each exit and last of the student's own logits; with `rising` from 1 on."""
    given, place = config.given, jnp.linspace(0, 1, outputs)
    return given.gamma + given.rising * (1 - given.gamma) * (1 - place)


def enhanced(config: Any, outputs: Array, batch: Any) -> Array:
    """The loss [e, b] of exits and last of the student's own logits beside the teacher.

    It has the form of the code or, as `paper` and `normalized` say, that of the paper or weights
    that sum to 1.
    """
    given, known = config.given, (outputs, batch["teacher"], batch["label"])
    gamma = exponents(config, len(outputs))
    code, paper, normalized = (
        target_enhanced_loss(*known, gamma=gamma, **way)
        for way in ({}, {"form": "paper"}, {"normalized": True})
    )
    share = 1 - given.paper - given.normalized
    return share * code + given.paper * paper + given.normalized * normalized


def at_exits(config: Any, found: Outputs, pairs: Any, batch: Any) -> Array:
    """The loss of the student's own logits and of all exits, which may learn labels alone."""
    del pairs
    given = config.given
    label = jax.vmap(lambda own: smoothed_cross_entropy(own, batch["label"], smoothing=0.0))
    outputs = jnp.concatenate([jnp.asarray(found.exits), found.logits[None]])
    *beside, last = enhanced(config, outputs, batch)
    each = given.hard * label(found.exits) + (1 - given.hard) * jnp.stack(beside)
    return given.ofa * last + given.exits * jnp.sum(each, axis=0)


def task(
    config: Any, bed: Bed, *, family: str, kind: str, methods: Sequence[str] | None = None
) -> Task:
    """The problem of one student; of the kind's methods, some only if they are given."""
    methods = KINDS[kind] if methods is None else methods
    if kind == "exits":
        return taught.task(config, bed, with_exits(config, family), methods, at_exits)
    return taught.task(config, bed, network(config, family), methods)


def train_kinds(
    config: Any, run: RunDirectory, bed: Bed, families: Iterable[str],
    students_of: Callable[[str, str], Changes],
) -> dict[str, list[Students]]:  # fmt: skip
    """Trains the students of some families, a program for each family and kind.

    Args:
      config: The run's config.
      run: Its directory.
      bed: What students learn from.
      families: Families of the students.
      students_of: Function of a family and a kind, of which it names the students by what they
        change in the config.

    Returns:
      By family its programs, in the order of `KINDS`.
    """
    return {
        family: [
            train_students(
                config, run, f"{family}_{kind}", family, students_of(family, kind), bed,
                partial(task, bed=bed, family=family, kind=kind),
            )
            for kind in KINDS
        ]
        for family in families
    }  # fmt: skip
