"""One-for-All: a student of one family of networks learns from a teacher of another, at its exits.

Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation, arXiv:2310.19444, NeurIPS 2023. A ConvNet, a ViT and an MLP-Mixer learn clothes from
many images; smaller ones of the two other families learn from few images and from what the teacher
says of them. Sides are the label alone, KD, DKD, DIST, features (FitNet on the maps of the last
stage, RKD by distances and angles together, CC, CRD), the enhanced loss without exits, exits that
learn labels alone, and One-for-All in both forms of its enhancement, with weights that sum to 1,
and with an exponent of each exit. All have equally many tries, of which validation images choose
one setting for all pairs: numbers of a side at one learning rate, and the first of them at others.
What an exponent is worth is measured at that one rate, which all exponents had. The unit of
intervals is a test image, its value the mean over pairs. Data, networks and margins are this
repository's; students of a family and a kind are one program.
"""

from functools import partial
from typing import Any

from experiments.distillation import ofakd_figures, ofakd_sides, ofakd_students
from experiments.distillation.families import make_bed
from experiments.distillation.ofakd_measures import (
    EXPONENTS,
    PAIRS,
    alignment,
    best_hint,
    costs,
    pairs_of,
    wanted_of,
)
from experiments.distillation.ofakd_sides import ALONE, SIDES, changes_of, variants_of
from experiments.distillation.pairs import choose, compared, named, tried
from experiments.distillation.students import Changes, settings
from experiments.ranges import Range
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2310.19444; data, networks and margin are this repository's"
ALIKE = (
    "changed after the first measurement: each side's exponents at one learning rate; in results "
    "of before 2026-11-29 the side stands beside One-for-All's γ = 1, and since validation images "
    "chose γ = 1 for it as well, both sides of the difference are one loss at one setting"
)
CLAIMS = (
    Claim("A mean over six pairs of families is above that of KD, each at the best of equally "
          "many settings", "ofa_over_kd", ">=", 0.0, f"{SOURCE}; one number of each has both "
          "learning rates, other temperatures and exponents the first; margin 0 since 2026-12-04",
          stated="2026-12-04", null="seed_gain",
          says="One-for-All changes accuracy by {mean:+.1p} points over KD ({accuracy_ofa:.1%} "
          "against {accuracy_kd:.1%}), a mean over six pairs of families"),
    Claim("It is one point above that of the best loss on features", "ofa_over_hints", ">=", 0.01,
          f"{SOURCE}: FitNet, RKD, CRD; RKD has both terms since a first run",
          stated="2026-11-27", null="hard_over_hints",
          says="One-for-All changes accuracy by {mean:+.1p} points over the best loss on features"),
    Claim("An exponent that validation images choose is worth 0.2 points beside γ = 1",
          "gamma_gain", ">=", 0.002, f"{SOURCE}; {ALIKE}", stated="2026-11-29", null="seed_gain",
          says="A chosen exponent γ changes One-for-All by {mean:+.1p} points beside γ = 1"),
    Claim("Exits are worth 0.3 points beside the same loss on the student's own logits",
          "exits_gain", ">=", 0.003, f"our question; {SOURCE}",
          stated="2026-11-26", null="seed_gain",
          says="Exits change accuracy by {mean:+.1p} points beside the same loss without them"),
)  # fmt: skip
RANGES = ofakd_sides.RANGES | {
    "compared": Range(4, whole=True), "rates": ofakd_sides.POSITIVE,
    **{f"tries.{side}.gamma": ofakd_sides.POSITIVE for side in ("paper", "normalized", "rising")},
}  # fmt: skip
COMPARED = tuple(side for side in SIDES if side not in ALONE)
"""Sides that have tries."""
CAPTIONS = ofakd_figures.CAPTIONS
PICTURE = "sides.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains teachers and students, chooses on validation images, compares, draws."""
    check(config)
    bed = make_bed(config, run)
    programs = ofakd_students.train_kinds(
        config, run, bed, config.students, partial(students_of, config)
    )
    chosen = choose(config, programs, COMPARED)
    hint = best_hint(chosen, programs)
    Progress().note(f"chosen on validation images: {chosen}; {hint} is the best of the hints")
    right = named(config, bed, programs, wanted_of(config, chosen, programs), pairs_of(config))
    right["hints"] = right[hint]
    matrix, agreement = alignment(config, bed, programs, chosen)
    metrics = compared(right, PAIRS) | tried(config, chosen) | agreement | costs(config, bed)
    metrics |= {f"accuracy_teacher_{name}": own for name, own in bed.accuracy.items()}
    ofakd_figures.of_sides(run, right)
    ofakd_figures.of_gamma(config, run, programs)
    ofakd_figures.of_stages(run, bed.families, matrix)
    return {name: float(value) for name, value in metrics.items()}


def students_of(config: Any, family: str, kind: str) -> Changes:
    """By name what the students of a family and a kind change; their teachers are of others."""
    teachers = [name for name in config.teachers if name != family]
    found = changes_of(config, kind, teachers)
    return found | variants_of(config, teachers) if kind == "exits" else found


def check(config: Any) -> None:
    """Raises `UserError` unless sides can be compared, and have the tries that claims read."""
    families = tuple(config.teachers)
    if families != tuple(config.students) or len(families) < 2:
        raise UserError(
            f"teachers are {families} and students {tuple(config.students)}, expected the same "
            "families, two or more"
        )
    if set(config.tries) != set(COMPARED):
        raise UserError(f"tries has {sorted(config.tries)}, expected {sorted(COMPARED)}")
    for side in COMPARED:
        keys = tuple(config.tries[side])
        if keys != SIDES[side].keys:
            raise UserError(f"tries.{side} has {keys}, expected {SIDES[side].keys}")
    counts = {side: len(settings(config, side)) for side in COMPARED}
    if len(set(counts.values())) > 1:
        raise UserError(f"tries has {counts} settings, expected equally many of each")
    if config.tries.ofa.gamma[0] != 1.0:
        raise UserError(f"tries.ofa.gamma is {config.tries.ofa.gamma}, expected 1 first")
    for side in EXPONENTS:
        if 1.0 not in config.tries[side].gamma:
            raise UserError(
                f"tries.{side}.gamma is {config.tries[side].gamma}, expected 1 among them"
            )
    if not config.rates:
        raise UserError("rates is empty, expected at least one learning rate")
