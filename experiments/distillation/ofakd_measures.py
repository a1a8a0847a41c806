"""Accuracies beside one another, how stages of families agree, and what exits cost."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.claims import with_bounds
from experiments.common.many import replaced
from experiments.distillation import families, students
from experiments.distillation.families import Bed
from experiments.distillation.ofakd_sides import HINTS, SIDES, VARIANTS
from experiments.distillation.ofakd_students import task
from experiments.distillation.students import Students
from rml.evaluation import linear_cka, program_flops
from rml.ops import t_interval

PLAIN = (1.0,)
"""The setting of One-for-All that enhances nothing."""
PAIRS = {
    "ofa_over_hints": ("ofa", "hints"),
    "hard_over_hints": ("hard", "hints"),
    "ofa_over_kd": ("ofa", "kd"),
    "hard_over_kd": ("hard", "kd"),
    "ofa_over_dkd": ("ofa", "dkd"),
    "ofa_over_label": ("ofa", "label"),
    "gamma_gain": ("ofa", "ofa_plain"),
    "seed_gain": ("again", "ofa_plain"),
    "exits_gain": ("ofa", "enhanced"),
    "teacher_gain": ("ofa", "hard"),
    "shuffled_gain": ("shuffled", "hard"),
    "code_over_paper": ("ofa", "paper"),
}
"""Differences of accuracy."""
Programs = Mapping[str, list[Students]]
"""By family of students its programs."""
Right = dict[str, dict[tuple[str, str], np.ndarray]]
"""By side and pair of teacher and student, whether each test image is named rightly."""


def pairs_of(config: Any) -> list[tuple[str, str]]:
    """Pairs of a teacher's family and another of its student."""
    return list(permutations(config.teachers, 2))


def choose(config: Any, programs: Programs) -> dict[str, Any]:
    """By side its setting with the best accuracy on validation images, one for all pairs."""
    trained = [own for family in programs.values() for own in family]
    return {side: students.best(config, side, trained) for side in SIDES}


def better_hint(chosen: Mapping[str, Any], programs: Programs) -> str:
    """The side that reads features and is better on validation images."""
    trained = [own for family in programs.values() for own in family]
    return max(HINTS, key=lambda side: np.mean(students.of_setting(side, chosen[side], trained)))


def named(config: Any, bed: Bed, programs: Programs, chosen: Mapping[str, Any]) -> Right:
    """Reads test images by the chosen students of every side."""
    wanted = {side: (side, setting) for side, setting in chosen.items()}
    wanted |= {name: (name, PLAIN) for name in VARIANTS} | {"ofa_plain": ("ofa", PLAIN)}
    images = {
        family: students.named(config, bed, family, own, wanted.values())
        for family, own in programs.items()
    }
    found: Right = {}
    for name, key in wanted.items():
        found[name] = {
            (teacher, student): images[student][
                (*key, teacher if (*key, teacher) in images[student] else None)
            ]
            for teacher, student in pairs_of(config)
        }
    return found


def compared(right: Right) -> dict[str, float]:
    """Accuracies over all pairs and of each, and differences with intervals over images."""
    means = {side: np.mean(list(own.values()), axis=0) for side, own in right.items()}
    metrics = {f"accuracy_{side}": float(own.mean()) for side, own in means.items()}
    for side, own in right.items():
        metrics |= {f"accuracy_{side}_{t}_{s}": float(x.mean()) for (t, s), x in own.items()}
    for name, (first, second) in PAIRS.items():
        metrics |= with_bounds(name, t_interval(means[first] - means[second]))
    return metrics


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
        variables = programs[family][0].some([("label", chosen["label"], None)])
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
    """Operations of a training step over those without exits, means over families, and sizes.

    Beside ours are exits whose tokens are not merged.
    """
    ways: dict[str, tuple[dict[str, Any], bool]] = {
        "kd": ({}, False), "exits": ({}, True), "unmerged": ({"exits.grid": 1 << 20}, True),
    }  # fmt: skip
    shares: dict[str, list[float]] = {"exits": [], "unmerged": []}
    metrics = {}
    for family in config.students:
        flops, sizes = {}, {}
        for name, (changes, exits) in ways.items():
            problem = task(replaced(config, changes), bed, family=family, exits=exits)
            state = nn.meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
            flops[name] = program_flops(problem.step, state, problem.batch_spec)
            sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))
        for name, own in shares.items():
            own.append(flops[name] / flops["kd"])
        metrics[f"parameters_{family}"] = sizes["kd"]
        metrics[f"exit_parameters_{family}"] = sizes["exits"] - sizes["kd"]
    return metrics | {f"flops_{name}_over_kd": float(np.mean(x)) for name, x in shares.items()}
