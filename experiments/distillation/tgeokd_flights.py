"""TGeo-KD where one class is rare: which flights arrive hours late, from what is known before.

Hu et al., arXiv:2312.15112, ICLR 2024, measure attack detection and clicks, whose rare class they
repeat in training; neither is public or small. Here a teacher has seen most of a year's flights and
students those of sixty other days. Sides, tries and variants are those of `tgeokd`, what they are
judged by is the area under the ROC curve, and the unit of intervals is a day.
"""

from typing import Any

import numpy as np

from experiments.distillation import tgeokd_figures
from experiments.distillation.late_flights import COMMON, RARE, make_bed, nats
from experiments.distillation.noisy import classifier
from experiments.distillation.tgeokd_measures import compared, moves, read_images
from experiments.distillation.tgeokd_sides import check, train_sides
from experiments.ranges import Range
from rml.training import Claim, RunDirectory

SOURCE = "arXiv:2312.15112; data, networks and margin are this repository's"
STATED = "2026-11-28"
CLAIMS = (
    Claim("It is not below the best fixed ratio, temperature and rate by validation flights",
          "tgeokd_over_fixed", ">=", 0.0, f"{SOURCE}; students' learning rates are tried on all "
          "sides since a first measurement", stated=STATED, null="shuffled_over_fixed",
          says="A ratio learned for each flight changes the area under the curve by {mean:+.1p} "
          "points over the best fixed ratio"),
    Claim("A ratio for each flight is worth area beside one learned number",
          "tgeokd_over_scalar", ">=", 0.0, f"our question; {SOURCE}",
          stated=STATED, null="shuffled_over_scalar",
          says="A ratio for each flight changes the area by {mean:+.1p} points beside one learned "
          "number for all"),
    Claim("The side between student and teacher is worth 0.3 points beside the points themselves",
          "st_gain", ">=", 0.003, SOURCE, stated=STATED, null="seed_gain",
          says="The triangle's side between student and teacher changes the area by {mean:+.1p} "
          "points"),
)  # fmt: skip
RANGES = {
    "tries.constant": Range(high=1), "data.share": Range(high=1, above=True, below=True),
    "students": Range(1, whole=True),
}  # fmt: skip
CAPTIONS = {
    "ratios.png": tgeokd_figures.CAPTIONS["ratios.png"].replace("image", "flight"),
    "groups.png": "Learned ratios of training flights at the end of the training; rare ones are "
    "those that arrive late.",
    "course.png": "Mean learned ratio of the flights of a batch by class against steps, and the "
    "range of students of several seeds.",
    "fixed.png": "Area under the ROC curve on test flights of fixed ratios by temperature, means "
    "over the students of a setting; the line is that of the ratio that is learned for each one.",
    "sides.png": "Area under the ROC curve on test flights of every side, with its 95% interval "
    "over days.",
}
PICTURE = "course.png"
STAGED = True  # variants have the settings that the sides have chosen


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the teacher and all students, chooses on validation flights, compares, draws."""
    check(config)
    bed = make_bed(config, run)
    sides = train_sides(config, run, bed)
    metrics = compared(sides.right, "auroc") | {"auroc_teacher": bed.teacher_accuracy}
    metrics |= sides.options()
    for variant, end in (("", ""), ("shuffled", "_shuffled")):
        own, params, omega = sides.of_images(config, variant)
        read = read_images(own, bed, params, omega)
        rare = bed.train["label"] == RARE
        found = {"ratio_rare": read.ratio[rare].mean(), "ratio_common": read.ratio[~rare].mean()}
        metrics |= {f"{key}{end}": value for key, value in (found | moves(read)).items()}
        if not variant:
            tgeokd_figures.of_images(run, read, bed)
            metrics["nats_tgeokd"] = of_students(config, bed, params)
    for side, name in (("kd", "kd"), ("ce", "ce"), ("fixed", "constant")):
        params, _ = sides.given.parts(sides.chosen[name])
        metrics[f"nats_{side}"] = of_students(config, bed, params)
    base = np.bincount(bed.test["label"], minlength=2) / len(bed.test["label"])
    metrics["nats_base"] = -(base[COMMON] * np.log(base[COMMON]) + base[RARE] * np.log(base[RARE]))
    tgeokd_figures.of_sides(run, sides, "area under the ROC curve")
    tgeokd_figures.of_course(run, sides.variants["again"], bed)
    return {name: float(value) for name, value in metrics.items()}


def of_students(config: Any, bed: Any, params: Any) -> float:
    """Nats a test flight of some students."""
    share = float(np.mean(bed.train["label"] == RARE))
    return nats(classifier(config), {"params": params}, bed.test, share)
