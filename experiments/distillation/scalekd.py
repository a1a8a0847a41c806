"""ScaleKD: students of other architectures learn in the space of a ViT's tokens.

Fan, Li, Liu and Yao, ScaleKD: Strong Vision Transformers Could Be Excellent Teachers,
arXiv:2411.06786, NeurIPS 2024. ViTs of three depths learn clothes from many images; a ConvNet, an
MLP-Mixer and a ViT with a class token learn from few images and from what a ViT says of them. Sides
are the label alone, KD, FitNet, One-for-All, KD with the cosine of linearly mapped features, and
ScaleKD, whole, without each of its parts, and in the public code's traditional setting. All have
equally many tries of learning rates and of one option, of which validation images choose one
setting for all families. The unit of intervals is a test image, its value the mean over families.
Data, networks and margins are this repository's; students of a family and a kind are one program.
"""

from typing import Any

import jax
import numpy as np

from experiments.distillation import scalekd_figures
from experiments.distillation.families import make_bed
from experiments.distillation.scalekd_lessons import make_lessons, of_main
from experiments.distillation.scalekd_measures import (
    arms_of,
    best_features,
    choose,
    compared,
    costs,
    named,
    probe_images,
    probed,
)
from experiments.distillation.scalekd_sides import SIDES, changes_of, depths, further, main
from experiments.distillation.scalekd_students import KINDS, inspect, train
from experiments.distillation.students import RATE, Students, rate_at_edge, settings
from experiments.ranges import Range
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2411.06786; data, networks and margin are this repository's"
STATED = "2026-11-27"
CLAIMS = (
    Claim("A mean over a ConvNet, a Mixer and a ViT is one point above that of KD",
          "scalekd_over_kd", ">=", 0.01, f"{SOURCE}; the ViT was added after a first run",
          stated=STATED, null="shuffled_over_kd"),
    Claim("It is half a point above the better of FitNet and One-for-All by validation images",
          "scalekd_over_features", ">=", 0.005,
          f"{SOURCE}: feature distillation; One-for-All was added after a first run",
          stated=STATED, null="shuffled_over_features"),
    Claim("It is 0.2 points above KD with the cosine of linearly mapped features of the last stage",
          "scalekd_over_cosine", ">=", 0.002, f"our question; {SOURCE}",
          stated=STATED, null="shuffled_over_cosine"),
    Claim("Projectors that attend are worth 0.2 points beside linear ones",
          "projector_gain", ">=", 0.002, SOURCE, stated=STATED, null="seed_gain"),
    Claim("The view without the mean is worth 0.2 points beside the direct one alone",
          "views_gain", ">=", 0.002, SOURCE, stated=STATED, null="seed_gain"),
    Claim("The teacher's own blocks are worth 0.2 points",
          "path_gain", ">=", 0.002, SOURCE, stated=STATED, null="seed_gain"),
    Claim("Queries made of what leaves these blocks are worth 0.2 points beside learned ones",
          "queries_gain", ">=", 0.002, f"{SOURCE}: public code",
          stated=STATED, null="seed_gain"),
    Claim("With a quarter of the images students are not below the label alone on all",
          "few_over_label", ">=", 0.0, f"{SOURCE}: fewer samples seen",
          stated=STATED, null="few_label_over_label"),
    Claim("Students are the better the deeper the teacher is: rank correlation over three depths "
          "of 0.5", "rank_with_depth_scalekd", ">=", 0.5, f"{SOURCE}: scaling of teachers; left "
          "out after the first measurement, where FitNet met it too, and put back; the setting of "
          "each side was chosen with the deepest teacher and serves all depths; until 2026-12-02 "
          "no correlation was enough",
          stated="2026-11-28", null="rank_with_depth_fitnet"),
    Claim("A linear probe on digits is one point above that of KD",
          "probe_scalekd_over_kd", ">=", 0.01,
          f"{SOURCE}: COCO, ADE20K; of the label alone until the first measurement, where others' "
          "tokens met it too", stated="2026-11-28", null="probe_shuffled_over_kd"),
    Claim("A step, the teacher's reading included, has at most 2.5 times the operations of KD's",
          "flops_scalekd_over_kd", "<=", 2.5, f"our margin; {SOURCE}",
          stated=STATED, null="flops_whole_over_kd"),
)  # fmt: skip
SHARE = Range(high=1)
RANGES = {
    "given.own": SHARE, "given.path": SHARE, "given.kd": SHARE, "tries.kd.kd": SHARE,
    "tries.label.smoothing": SHARE, "compared": Range(1, whole=True), "quarter": Range(1),
    "given.images": Range(1), "tries.ofa.gamma": Range(above=True),
}  # fmt: skip
CAPTIONS = scalekd_figures.CAPTIONS
PICTURE = "arms.png"
STAGED = True  # variants have the settings that the sides have chosen


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains teachers and students, chooses on validation images, compares, draws."""
    check(config)
    others = probe_images(config)  # what lacks is named before teachers train
    bed = make_bed(config, run)
    lessons = make_lessons(config, bed)
    programs: dict[str, list[Students]] = {family: [] for family in config.students}
    whole = {}
    for family, own in programs.items():
        for kind in KINDS:
            changes = changes_of(config, kind)
            found, variables = train(
                config, run, f"{family}_{kind}", changes, bed, lessons, family=family, kind=kind
            )
            own.append(found)
            if kind == "attention":  # those that are drawn
                whole[family] = variables
    chosen = choose(config, programs)
    Progress().note(f"chosen on validation images: {chosen}")
    for family, own in programs.items():
        for kind in KINDS:
            changes = further(config, kind, chosen)
            if not changes:
                continue
            name = f"{family}_{kind}_further"
            own.append(train(config, run, name, changes, bed, lessons, family=family, kind=kind)[0])
    arms, feature = arms_of(config, chosen), best_features(chosen, programs)
    Progress().note(f"{feature} is the better of the others on features")
    right = named(config, bed, programs, arms)
    right["features"] = right[feature]
    metrics = compared(config, right) | probed(config, programs, arms, others)
    metrics |= costs(config, bed, lessons)
    metrics |= {f"accuracy_teacher_{name}": own for name, own in bed.accuracy.items()}
    for side, setting in chosen.items():
        metrics[f"tries_{side}"] = len(settings(config, side))
        metrics[f"rate_at_edge_{side}"] = rate_at_edge(config, side, setting)
        metrics |= {
            f"chosen_{side}_{key}": number
            for key, number in zip(config.tries[side], setting, strict=True)
        }
    scalekd_figures.of_arms(run, right)
    sizes = {
        name: sum(np.size(leaf) for leaf in jax.tree.leaves(own))
        for name, own in bed.variables.items()
    }
    scalekd_figures.of_sizes(config, run, right, sizes)
    images = bed.test["image"][: config.compared]
    path, last = of_main(bed, lessons, main(config))
    looked, made = {}, {}
    for family, own in programs.items():
        attending = own[KINDS.index("attention")]
        drawn = one_of(whole[family], attending.names.index(arms["scalekd"]))
        made[family], weights = inspect(config, family, drawn, images, path)
        looked[family] = weights["third"]
    scalekd_figures.of_attention(config, run, images, looked)
    scalekd_figures.of_features(run, images, last, made)
    return {name: float(value) for name, value in metrics.items()}


def one_of(variables: Any, index: int) -> Any:
    """The variables of one student of several."""
    return jax.tree.map(lambda leaf: leaf[index], variables)


def check(config: Any) -> None:
    """Raises `UserError` unless sides can be compared, and teachers differ in depth alone."""
    for side, own in SIDES.items():
        if set(config.tries[side]) != {RATE, own.key}:
            raise UserError(
                f"tries.{side} has {tuple(config.tries[side])}, expected {(RATE, own.key)}"
            )
    counts = {side: len(settings(config, side)) for side in SIDES}
    if len(set(counts.values())) > 1:
        raise UserError(f"tries has {counts} settings, expected equally many of each")
    kinds = [{**own, "depth": 0} for own in config.teachers.values()]
    if any(own != kinds[0] for own in kinds) or len(set(depths(config).values())) < 2:
        raise UserError(
            f"teachers are {list(config.teachers)}, expected two or more that differ in depth alone"
        )
    if kinds[0].get("pooling") != "gap":
        raise UserError(
            f"pooling of teachers is {kinds[0].get('pooling')!r}, expected 'gap': a class token is "
            "no place of the grid"
        )
    if config.quarter > config.given.images:
        raise UserError(
            f"quarter is {config.quarter:g}, expected at most given.images, {config.given.images:g}"
        )
    least = min(depths(config).values())
    if config.path.blocks >= least:
        raise UserError(f"path.blocks is {config.path.blocks}, expected fewer than {least}")
