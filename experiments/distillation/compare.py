"""Distillation losses ranked on pairs of a teacher and a student, under one budget.

Every loss has as many settings, learning rates among them, of which validation images choose one
for all pairs, and the same steps on the same batches. Beside accuracy stands what a loss costs:
operations and seconds of a step of one student, bytes that are kept of what the teacher makes of an
image, and numbers that are trained beside the student. The cross-entropy with the teacher is no
side of its own: its gradient is KD's. One-for-All stands with exits and without. Claims are those
of the papers of simple losses: DKD (Zhao et al., arXiv:2203.08679), DIST (Huang et al.,
arXiv:2205.10536), CC (Peng et al., arXiv:1904.01802) and CRD (Tian et al., arXiv:1910.10699),
beside KD (Hinton et al., arXiv:1503.02531). Networks, data and margins are this repository's.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from experiments.distillation import compare_figures, ofakd_sides, ofakd_students
from experiments.distillation.families import Bed, make_bed
from experiments.distillation.ofakd_sides import SIDES, changes_of, repeated
from experiments.distillation.pairs import choose, compared, named, tried
from experiments.distillation.students import RATE, Changes, best, settings
from experiments.distillation.taught import key_of
from experiments.distillation.together import seconds
from experiments.ranges import Range
from rml.distillation import METHODS
from rml.errors import UserError
from rml.evaluation import program_flops
from rml.training import Claim, Progress, RunDirectory

SOURCE = (
    "networks, data and margin are this repository's; the null was the label alone until "
    "2026-12-02, below KD already"
)
STATED = "2026-11-27"
CLAIMS = (
    Claim("DKD is above KD, a mean over pairs", "dkd_over_kd", ">=", 0.0,
          f"arXiv:2203.08679; {SOURCE}; margin 0 since 2026-12-04", stated="2026-12-04",
          null="again_over_kd", says="DKD changes accuracy by {mean:+.1p} points over KD "
          "({accuracy_dkd:.1%} against {accuracy_kd:.1%})"),
    Claim("DIST is half a point above KD", "dist_over_kd", ">=", 0.005,
          f"arXiv:2205.10536; {SOURCE}", stated=STATED, null="again_over_kd",
          says="DIST changes accuracy by {mean:+.1p} points beside KD"),
    Claim("CC is half a point above KD", "cc_over_kd", ">=", 0.005,
          f"arXiv:1904.01802; {SOURCE}", stated=STATED, null="again_over_kd",
          says="CC changes accuracy by {mean:+.1p} points beside KD"),
    Claim("CRD is half a point above KD", "crd_over_kd", ">=", 0.005,
          f"arXiv:1910.10699; {SOURCE}", stated=STATED, null="again_over_kd",
          says="CRD changes accuracy by {mean:+.1p} points beside KD"),
)  # fmt: skip
RANGES = ofakd_sides.RANGES | {"compared": Range(whole=True)}
CAPTIONS = compare_figures.CAPTIONS
PICTURE = "ranking.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains teachers and students, chooses on validation images, ranks, counts costs, draws."""
    check(config)
    bed = make_bed(config, run)
    programs = ofakd_students.train_kinds(
        config, run, bed, dict.fromkeys(student for _, student in config.teachings),
        partial(students_of, config),
    )  # fmt: skip
    chosen = choose(config, programs, config.tries)
    again = best(
        config, "kd_again", [own for family in programs.values() for own in family],
        settings(config, "kd"),
    )  # fmt: skip
    Progress().note(f"chosen on validation images: {chosen}")
    wanted = {side: (side, setting) for side, setting in chosen.items()}
    wanted["again"] = ("kd_again", again)
    right = named(config, bed, programs, wanted, [tuple(pair) for pair in config.teachings])
    differences = {f"{side}_over_{other}": (side, other) for other in ("kd", "label")
                   for side in right if side != other}  # fmt: skip
    metrics = compared(right, differences) | tried(config, chosen)
    del right["again"]
    for side in right:
        metrics |= costs(config, bed, side)
    metrics |= {f"accuracy_teacher_{name}": own for name, own in bed.accuracy.items()}
    compare_figures.draw(run, right, metrics)
    return {name: float(value) for name, value in metrics.items()}


def students_of(config: Any, family: str, kind: str) -> Changes:
    """By name what the students of a family and a kind change; those of KD also with other seeds.

    A loss that is worth nothing beside KD is KD with another seed, of whose settings validation
    images choose one too.
    """
    found = changes_of(config, kind, [t for t, s in config.teachings if s == family])
    return found | repeated(config, "kd", found)


def costs(config: Any, bed: Bed, side: str) -> dict[str, float]:
    """What a side costs: a step of one student, and what is kept and trained beside it.

    The teacher's outputs are computed once and kept, so that no step reads images by it.
    """
    own = SIDES[side]
    named = [name for name in METHODS if name in {*own.keys, *own.fixed, *own.terms}]
    methods = () if own.kind == "exits" else named
    problem = ofakd_students.task(config, bed, family=config.timed, kind=own.kind, methods=methods)
    state = jax.eval_shape(lambda key: nn.meta.unbox(problem.init(key)), jax.random.key(0))
    parts = {"encoder", "classifier"}
    beside = [part for name, part in state.params["network"].items() if name not in parts]
    kept = {key_of(name) for name in named}
    return {
        f"mflop_{side}": program_flops(problem.step, state, problem.batch_spec) / 1e6,
        f"seconds_{side}": seconds(problem, repeats=config.timing.repeats),
        f"bytes_{side}": sum(bed.train[key][0, 0].nbytes for key in kept),
        f"beside_{side}": sum(x.size for x in jax.tree.leaves([beside, state.params["maps"]])),
    }


def check(config: Any) -> None:
    """Raises `UserError` unless sides have the settings that they name, equally many of each."""
    for side, tries in config.tries.items():
        if side not in SIDES or {*tries} != {*SIDES[side].keys, RATE}:
            raise UserError(
                f"tries.{side} has {tuple(tries)}, expected a side of {list(SIDES)}, its keys and "
                f"{RATE}"
            )
    if missing := {"kd", "label"} - {*config.tries}:
        raise UserError(f"tries lacks {sorted(missing)}, beside which the others stand")
    counts = {side: len(settings(config, side)) for side in config.tries}
    if len(set(counts.values())) > 1:
        raise UserError(f"tries has {counts} settings, expected equally many of each")
    known = set(config.teachers) & set(config.students)
    wrong = [name for pair in config.teachings for name in pair if name not in known]
    if wrong or len(set(config.teachings)) < len(config.teachings) or not config.teachings:
        raise UserError(
            f"teachings is {config.teachings}, expected different pairs of {sorted(known)}"
        )
    if config.timed not in known:
        raise UserError(f"timed is {config.timed!r}, expected one of {sorted(known)}")
