"""TGeo-KD: how much of each image's teacher a student should heed, learned from their triangle.

Hu et al., Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation,
arXiv:2312.15112, ICLR 2024. A teacher learns clothes from clean images; students learn from few
others, of which some are labelled wrongly and some are noise. Their ratio is fixed (from the label
alone to the teacher alone), moves along a schedule or in two stages (annealing), follows a rule of
the example, is one learned number, or is learned for each image, from the triangle or from its two
losses. All sides have equally many tries, of which clean validation images choose; they are also
what learned ratios are judged on, so that the best fixed ratio and that of public benchmarks are
trained once more with them; of the latter nothing is claimed, since at a lower learning rate ratios
by the relations of other images were above it too. The network of ratios has AdamW with the decay
of a public re-implementation, which has it in Adam's gradient, and rates up to that one's. The unit
of intervals is a test image. Data, networks and margins are this repository's, the encoding and the
look-ahead of one step readings of the paper.
"""

from typing import Any

from experiments.distillation import tgeokd_figures
from experiments.distillation.noisy import make_bed
from experiments.distillation.tgeokd_measures import compared, costs, group_measures, read_images
from experiments.distillation.tgeokd_sides import check, train_sides
from experiments.ranges import Range
from rml.training import Claim, RunDirectory

SOURCE = "arXiv:2312.15112; data, networks and margin are this repository's"
CLAIMS = (
    Claim("It is not below the best fixed ratio, temperature and rate by validation images",
          "tgeokd_over_fixed", ">=", 0.0, f"{SOURCE}; students' learning rates are tried on all "
          "sides since a first measurement", stated="2026-11-28", null="shuffled_over_fixed",
          says="A ratio learned for each image changes accuracy by {mean:+.1p} points over the "
          "best fixed ratio ({accuracy_tgeokd:.1%} against {accuracy_fixed:.1%})"),
    Claim("A ratio for each image is worth accuracy beside one learned number",
          "tgeokd_over_scalar", ">=", 0.0, f"our question; {SOURCE}",
          stated="2026-11-26", null="shuffled_over_scalar",
          says="A ratio for each image changes accuracy by {mean:+.1p} points beside one learned "
          "number for all"),
    Claim("The side between student and teacher is worth 0.3 points beside the points themselves",
          "st_gain", ">=", 0.003, f"{SOURCE}: 1.4 points of CIFAR-100",
          stated="2026-11-26", null="seed_gain",
          says="The triangle's side between student and teacher changes accuracy by {mean:+.1p} "
          "points"),
    Claim("Images with a wrong label have higher ratios than clean ones: in 70% of pairs",
          "flipped_higher", ">=", 0.7, f"{SOURCE}; its data has no such labels",
          stated="2026-11-26", null="flipped_higher_shuffled",
          says="In {mean:.0%} of pairs the image with a wrong label heeds its teacher more than "
          "the clean one"),
)  # fmt: skip
RANGES = {
    "tries.constant": Range(high=1), "noise.flipped": Range(high=1, below=True),
    "noise.noise": Range(high=1, below=True), "students": Range(1, whole=True),
}  # fmt: skip
CAPTIONS = tgeokd_figures.CAPTIONS
PICTURE = "ratios.png"
STAGED = True  # variants have the settings that the sides have chosen


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the teacher and all students, chooses on validation images, compares, draws."""
    check(config)
    bed = make_bed(config, run)
    sides = train_sides(config, run, bed)
    metrics = compared(sides.right) | {"accuracy_teacher": bed.teacher_accuracy} | sides.options()
    for variant, end in (("", ""), ("shuffled", "_shuffled")):
        own, params, omega = sides.of_images(config, variant)
        images = read_images(own, bed, params, omega)
        metrics |= {f"{key}{end}": value for key, value in group_measures(bed, images).items()}
        if not variant:
            tgeokd_figures.of_images(run, images, bed)
    metrics |= costs(config, bed)
    tgeokd_figures.of_sides(run, sides)
    tgeokd_figures.of_course(run, sides.variants["again"], bed)
    return {name: float(value) for name, value in metrics.items()}
