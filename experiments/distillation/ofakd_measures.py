"""Accuracies beside one another, how stages of families agree, and what exits cost."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.many import replaced
from experiments.distillation import families, ofakd_sides, students
from experiments.distillation.families import Bed
from experiments.distillation.ofakd_sides import HINTS, VARIANTS
from experiments.distillation.ofakd_students import task
from experiments.distillation.pairs import Pair, Programs
from experiments.distillation.together import seconds
from rml.evaluation import linear_cka, program_flops

PAIRS = {
    "ofa_over_hints": ("ofa", "hints"),
    "hard_over_hints": ("hard", "hints"),
    "ofa_over_kd": ("ofa", "kd"),
    "hard_over_kd": ("hard", "kd"),
    "ofa_over_dkd": ("ofa", "dkd"),
    "ofa_over_dist": ("ofa", "dist"),
    "ofa_over_label": ("ofa", "label"),
    "gamma_gain": ("ofa_tried", "ofa_one"),
    "seed_gain": ("again", "ofa_plain"),
    "exits_gain": ("ofa", "enhanced"),
    "teacher_gain": ("ofa", "hard"),
    "shuffled_gain": ("shuffled", "hard"),
    "normalized_gain": ("normalized_tried", "normalized_one"),
    "rising_gain": ("rising_tried", "rising_one"),
    "code_over_paper": ("ofa", "paper"),
}
"""Differences of accuracy."""
EXPONENTS = ("ofa", "normalized", "rising")
"""Sides whose exponent is compared with γ = 1."""


def pairs_of(config: Any) -> list[Pair]:
    """Pairs of a teacher's family and another of its student."""
    return list(permutations(config.teachers, 2))


def best_hint(chosen: Mapping[str, Any], programs: Programs) -> str:
    """The side that reads features and is best on validation images."""
    trained = [own for family in programs.values() for own in family]
    return max(HINTS, key=lambda side: np.mean(students.of_setting(side, chosen[side], trained)))


def wanted_of(
    config: Any, chosen: Mapping[str, Any], programs: Programs
) -> dict[str, tuple[str, Any]]:
    """By name what is compared: all sides at their settings, and One-for-All's variants.

    Variants enhance nothing and have the learning rate that is best for One-for-All so. Exponents
    stand beside γ = 1 of their own side at the one rate that all of them had: the best of them by
    validation images is "tried", and γ = 1 is "one".
    """
    trained, rate = [own for family in programs.values() for own in family], config.rates[0]
    plain = students.best(config, "ofa", trained, ofakd_sides.plain(config))
    wanted = {side: (side, setting) for side, setting in chosen.items()}
    for side in EXPONENTS:
        alike = [own for own in students.settings(config, side) if own[-1] == rate]
        wanted[f"{side}_tried"] = (side, students.best(config, side, trained, alike))
        wanted[f"{side}_one"] = (side, (1.0, rate))
    return wanted | {name: (name, plain) for name in VARIANTS} | {"ofa_plain": ("ofa", plain)}


def alignment(
    config: Any, bed: Bed, programs: Programs, chosen: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, float]]:
    """CKA of every stage of the teachers with every stage of students that had the label alone.

    Returns:
      CKA [teachers' stages, students' stages], and by how much stages of the same place agree
      more within a family than between two; with rows of other images beside it.
    """
    images = bed.test["image"][: config.compared]
    theirs = [coordinates(x) for family in bed.families for x in bed.stages[family]]
    ours = []
    for family in bed.families:
        name = ("label", chosen["label"], None)
        variables = next(own for own in programs[family] if name in own.names).some([name])
        own = {
            name: {"head" if key == "classifier" else key: jax.tree.map(lambda x: x[0], tree)
                   for key, tree in part.items()}
            for name, part in variables.items()
        }  # fmt: skip
        found = families.read(families.classifier(config, config.students[family]), own, images)
        ours += [coordinates(x) for x in found.stages]
    shuffled = np.random.default_rng(config.seed).permutation(len(images))
    matrices = [
        np.array([[float(linear_cka(t, s[rows])) for s in ours] for t in theirs])
        for rows in (np.arange(len(images)), shuffled)
    ]
    within, between = (gaps(matrix, len(bed.families)) for matrix in matrices)
    metrics = {"cka_gap": within[0] - within[1], "cka_gap_shuffled": between[0] - between[1]}
    return matrices[0], metrics | {"cka_within": within[0], "cka_between": within[1]}


def coordinates(stage: Any) -> jax.Array:
    """Rows [n, n] with the products of a stage's centred rows: CKA of all is then one program."""
    x = np.asarray(stage, np.float64).reshape(len(stage), -1)
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x @ x.T)
    return jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), jnp.float32)


def gaps(matrix: np.ndarray, count: int) -> tuple[float, float]:
    """Means over stages of the same place, within each of `count` families and between two."""
    stages = len(matrix) // count
    blocks = matrix.reshape(count, stages, count, stages)
    same = np.einsum("fkgk->fg", blocks) / stages
    own = np.eye(count, dtype=bool)
    return float(same[own].mean()), float(same[~own].mean())


def costs(config: Any, bed: Bed) -> dict[str, float]:
    """Operations and seconds of a training step over those of KD, means over families, and sizes.

    Beside ours are exits whose tokens are not merged, of which operations alone are counted.
    """
    ways: dict[str, tuple[dict[str, Any], str]] = {
        "kd": ({}, "logits"), "exits": ({}, "exits"),
        "unmerged": ({"exits.grid": 1 << 20}, "exits"),
    }  # fmt: skip
    shares: dict[str, list[float]] = {"flops_exits": [], "flops_unmerged": [], "seconds_exits": []}
    metrics = {}
    for family in config.students:
        found, sizes = {}, {}
        for name, (changes, kind) in ways.items():
            own = replaced(config, changes)
            problem = task(own, bed, family=family, kind=kind, methods=("kd",)[: name == "kd"])
            state = nn.meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
            found[f"flops_{name}"] = program_flops(problem.step, state, problem.batch_spec)
            sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))
            if name != "unmerged":
                found[f"seconds_{name}"] = seconds(problem, repeats=config.timing.repeats)
        for name, each in shares.items():
            each.append(found[name] / found[f"{name.partition('_')[0]}_kd"])
        metrics[f"parameters_{family}"] = sizes["kd"]
        metrics[f"exit_parameters_{family}"] = sizes["exits"] - sizes["kd"]
    return metrics | {f"{name}_over_kd": float(np.mean(x)) for name, x in shares.items()}
