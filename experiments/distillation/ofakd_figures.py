"""Figures of the recipe on One-for-All."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.distillation.pairs import Programs, Right
from experiments.distillation.students import best, of_setting, settings
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "sides.png": "Accuracy on test images of every side, means over six pairs of a teacher and a "
    "student of another family, with 95% intervals over images.",
    "pairs.png": "Accuracy on test images above that of the label alone, in points, by side and "
    "by pair of teacher and student.",
    "gamma.png": "Accuracy on validation images against the exponent γ, means over six pairs: of "
    "One-for-All in the form of the code, in that of the paper, with weights that sum to 1, with "
    "exponents that rise from 1 over exits, and without exits, all at one learning rate.",
    "cka.png": "Linear CKA of the stages of teachers (rows) and of students that had the label "
    "alone (columns) on test images.",
}
NAMES = {
    "label": "label alone", "fitnet": "FitNet", "rkd_distance": "RKD, distances",
    "rkd_angle": "RKD, angles", "rkd": "RKD", "cc": "CC", "crd": "CRD", "kd": "KD", "dkd": "DKD",
    "dist": "DIST",
    "hard": "exits, labels", "shuffled": "exits, others' logits", "enhanced": "no exits",
    "paper": "OFA, paper's form", "normalized": "OFA, normalised", "rising": "OFA, rising γ",
    "ofa_plain": "OFA, γ = 1", "ofa": "OFA",
}  # fmt: skip
"""Sides as figures call them."""
SHORT = {"convnet": "CNN", "vit": "ViT", "mixer": "Mixer"}
"""Families as figures call them."""


def of_sides(run: RunDirectory, right: Right) -> None:
    """Draws accuracies of all sides, and of each pair above the label's."""
    names = {name: shown for name, shown in NAMES.items() if name in right}
    means = {name: np.mean(list(right[name].values()), axis=0) for name in names}
    centre, lows, highs = np.array([t_interval(own) for own in means.values()]).T
    figures.bars(
        run.figure("sides.png"), list(names.values()), {"accuracy": centre},
        {"accuracy": (highs - lows) / 2}, ylabel="accuracy on test images", decimals=3, cut=True,
    )  # fmt: skip
    of_pairs(run, right, {name: names[name] for name in names if name != "ofa_plain"})


def of_pairs(run: RunDirectory, right: Right, names: Mapping[str, str]) -> None:
    """Draws what sides, which figures call by `names`, are above the label alone in each pair."""
    pairs, rows = list(right["label"]), [name for name in names if name != "label"]
    gains = [
        [100 * float((right[name][pair] - right["label"][pair]).mean()) for pair in pairs]
        for name in rows
    ]
    figures.heatmap(
        run.figure("pairs.png"), gains, [names[name] for name in rows],
        [f"{SHORT.get(t, t)} → {SHORT.get(s, s)}" for t, s in pairs], xlabel="teacher → student",
        value_label="points above the label alone", diverging=True,
    )  # fmt: skip


def of_gamma(config: Any, run: RunDirectory, programs: Programs) -> None:
    """Draws accuracy against the exponent, at the first of the learning rates."""
    students = [own for family in programs.values() for own in family]

    def accuracy(side: str, *setting: float) -> float:
        return float(np.mean(of_setting(side, (*setting, config.rates[0]), students)))

    first = [own for own in settings(config, "kd") if own[-1] == config.rates[0]]
    kd = best(config, "kd", students, first)
    series = {}
    for side in ("ofa", "paper", "normalized", "rising", "enhanced"):
        gammas = list(config.tries[side].gamma)
        name = "OFA, code's form" if side == "ofa" else NAMES[side]
        series[name] = (gammas, [accuracy(side, gamma) for gamma in gammas])
    figures.curves(
        run.figure("gamma.png"), series, "exponent γ", "accuracy on validation images",
        reference=("KD", accuracy("kd", *kd[:-1])), above=True,
    )  # fmt: skip


def of_stages(run: RunDirectory, families: tuple[str, ...], matrix: np.ndarray) -> None:
    """Draws how the stages of teachers and students agree."""
    stages = len(matrix) // len(families)
    labels = [f"{SHORT.get(name, name)} {k + 1}" for name in families for k in range(stages)]
    figures.heatmap(
        run.figure("cka.png"), matrix, labels, labels, xlabel="stage of the student",
        ylabel="stage of the teacher", value_label="linear CKA",
    )  # fmt: skip
