"""Accuracies beside one another, what features are worth on other data, and what a step costs."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.common.claims import with_bounds
from experiments.common.timing import least_seconds
from experiments.distillation import students
from experiments.distillation.families import Bed, classifier
from experiments.distillation.scalekd_lessons import Lessons, tail_of
from experiments.distillation.scalekd_sides import FEATURES, SIDES, SIZED, depths, main
from experiments.distillation.scalekd_students import task
from experiments.distillation.students import Name, Students
from experiments.distillation.together import seconds
from rml import data
from rml.data import augment
from rml.evaluation import linear_probe, program_flops
from rml.ops import t_interval

PAIRS = {
    "scalekd_over_kd": ("scalekd", "kd"),
    "shuffled_over_kd": ("shuffled", "kd"),
    "scalekd_over_fitnet": ("scalekd", "fitnet"),
    "scalekd_over_ofa": ("scalekd", "ofa"),
    "scalekd_over_features": ("scalekd", "features"),
    "shuffled_over_features": ("shuffled", "features"),
    "scalekd_over_cosine": ("scalekd", "cosine"),
    "shuffled_over_cosine": ("shuffled", "cosine"),
    "scalekd_over_label": ("scalekd", "label"),
    "projector_gain": ("scalekd", "linear"),
    "views_gain": ("scalekd", "direct"),
    "direct_gain": ("scalekd", "alternative"),
    "path_gain": ("scalekd", "pathless"),
    "kd_gain": ("scalekd", "labelled"),
    "scale_gain": ("scalekd", "flat"),
    "queries_gain": ("scalekd", "learned"),
    "traditional_gain": ("scalekd", "traditional"),
    "seed_gain": ("again", "scalekd"),
    "few_over_label": ("few_scalekd", "label"),
    "few_label_over_label": ("few_label", "label"),
}
"""Differences of accuracy."""
PROBED = ("label", "kd", "scalekd", "shuffled")
"""Sides whose features are probed on other data."""
Programs = Mapping[str, list[Students]]
"""By family its programs."""
Right = dict[str, dict[str, np.ndarray]]
"""By arm and family, whether each image is named rightly."""


def choose(config: Any, programs: Programs) -> dict[str, Any]:
    """By side its setting with the best accuracy on validation images, one for all families."""
    trained = [own for family in programs.values() for own in family]
    return {side: students.best(config, side, trained) for side in SIDES}


def best_features(chosen: Mapping[str, Any], programs: Programs) -> str:
    """The other side that teaches by stages and is best on validation images."""
    trained = [own for family in programs.values() for own in family]
    return max(FEATURES, key=lambda own: np.mean(students.of_setting(own, chosen[own], trained)))


def arms_of(config: Any, chosen: Mapping[str, Any]) -> dict[str, Name]:
    """By arm the name of its students; "kd_depth2" is KD of another teacher than the main one."""
    arms: dict[str, Name] = {
        side: (side, chosen[side], main(config) if own.taught else None)
        for side, own in SIDES.items()
    }
    for name in ("again", "shuffled", "few_scalekd"):
        arms[name] = (name, chosen["scalekd"], main(config))
    arms["few_label"] = ("few_label", chosen["label"], None)
    for side in SIZED:
        others = list(depths(config))[:-1]
        arms |= {f"{side}_{teacher}": (side, chosen[side], teacher) for teacher in others}
    return arms


def named(config: Any, bed: Bed, programs: Programs, arms: Mapping[str, Name]) -> Right:
    """Reads test images by the students of every arm."""
    wanted = {name[:2] for name in arms.values()}
    images = {
        family: students.named(config, bed, family, own, wanted) for family, own in programs.items()
    }
    return {
        arm: {family: own[name] for family, own in images.items()} for arm, name in arms.items()
    }


def compared(config: Any, right: Right) -> dict[str, float]:
    """Accuracies over all families and of each, and differences with intervals over images.

    Beside them stand rank correlations of accuracy with the depth of the teacher.
    """
    means = {arm: np.mean(list(own.values()), axis=0) for arm, own in right.items()}
    metrics = {f"accuracy_{arm}": float(own.mean()) for arm, own in means.items()}
    for arm, own in right.items():
        metrics |= {f"accuracy_{arm}_{family}": float(x.mean()) for family, x in own.items()}
    least = next(iter(depths(config)))
    pairs = PAIRS | {f"growth_{side}": (side, f"{side}_{least}") for side in SIZED}
    for name, (first, second) in pairs.items():
        metrics |= with_bounds(name, t_interval(means[first] - means[second]))
    for side in SIZED:
        arms = [side if name == main(config) else f"{side}_{name}" for name in depths(config)]
        found = [metrics[f"accuracy_{arm}"] for arm in arms]
        metrics[f"rank_with_depth_{side}"] = rank_correlation(depths(config).values(), found)
    return metrics


def rank_correlation(x: Iterable[float], y: Iterable[float]) -> float:
    """Spearman's correlation, 0 where one of the two does not vary."""
    ranks = [stats.rankdata(list(own)) for own in (x, y)]
    return round(float(np.corrcoef(ranks)[0, 1]), 9) if all(map(np.ptp, ranks)) else 0.0


def probe_images(config: Any) -> dict[str, data.Source]:
    """Opens the images of `config.probe`, on which features are probed, as "train" and "test"."""
    return {
        part: data.load(
            config.probe.name, config.probe[part], data_dir=config.probe.data_dir,
            image_size=tuple(config.data.image_shape[:2]),
        )
        for part in ("train", "test")
    }  # fmt: skip


def probed(
    config: Any,
    programs: Programs,
    arms: Mapping[str, Name],
    images: Mapping[str, data.Source],
) -> dict[str, float]:
    """Probes classes of other data linearly, with differences over its images.

    Args:
      config: The run's config.
      programs: The students.
      arms: Names of those of each arm.
      images: The other data, as `probe_images` opens it.

    Returns:
      Accuracies of probes, and their differences.
    """
    known, seen = (
        {key: jnp.asarray(x) for key, x in images[part].arrays().items()}
        for part in ("train", "test")
    )
    right: Right = {arm: {} for arm in PROBED}
    for family, own in programs.items():
        net = students.network(config, family)
        for arm in PROBED:
            student = next(one for one in own if arms[arm] in one.names)
            variables = jax.tree.map(lambda leaf: leaf[0], student.some([arms[arm]]))
            first, second = (_features(net)(variables, x["image"]) for x in (known, seen))
            found = linear_probe(
                first, known["label"], second, seen["label"],
                num_classes=images["train"].num_classes,
                key=jax.random.key(config.seed),
            )  # fmt: skip
            classes = jnp.argmax(second @ found.weights + found.bias, axis=1)
            right[arm][family] = np.asarray(classes == seen["label"], float)
    return of_probes(right)


def of_probes(right: Right) -> dict[str, float]:
    """Metrics of probes that are right on images, by arm and family."""
    means = {arm: np.mean(list(own.values()), axis=0) for arm, own in right.items()}
    metrics = {f"probe_{arm}": float(own.mean()) for arm, own in means.items()}
    for arm in PROBED[1:]:
        difference = t_interval(means[arm] - means["label"])
        metrics |= with_bounds(f"probe_{arm}_over_label", difference)
    for arm in ("scalekd", "shuffled"):
        metrics |= with_bounds(f"probe_{arm}_over_kd", t_interval(means[arm] - means["kd"]))
    return metrics


@cache
def _features(net: Any) -> Any:
    """Features of images; one function for each network, so that it is compiled once."""
    return jax.jit(
        lambda variables, images: net.apply(variables, augment.to_float(images)).features
    )


def costs(config: Any, bed: Bed, lessons: Lessons) -> dict[str, float]:
    """Operations and seconds of a training step, the teacher's reading included, over KD's.

    Beside ScaleKD's is a step whose projected tokens pass all of the teacher, not timed.
    """
    name = main(config)
    images = jax.ShapeDtypeStruct((config.train.batch_size, *config.data.image_shape), jnp.float32)
    net = classifier(config, config.teachers[name])
    read = jax.jit(lambda v, x: net.apply(v, x, train=False))
    reading = program_flops(read, bed.variables[name], images)
    zeros, repeats = jnp.zeros(images.shape), config.timing.repeats
    reads = least_seconds(lambda: read(bed.variables[name], zeros), repeats=repeats)
    vit, variables = tail_of(config, name, bed, blocks=config.teachers[name].depth)
    every = jax.tree.map(lambda leaf: np.stack([leaf] * len(lessons.names)), variables)
    ways = {
        "kd": (lessons, "plain"), "scalekd": (lessons, "attention"),
        "whole": (lessons._replace(tail=vit, tails=every), "attention"),
    }  # fmt: skip
    shares: dict[str, list[float]] = {way: [] for way in ways}
    times: dict[str, list[float]] = {"kd": [], "scalekd": []}
    metrics: dict[str, float] = {"flops_reading": reading}
    for family in config.students:
        for way, (known, kind) in ways.items():
            problem = task(config, bed, known, family=family, kind=kind)
            state = nn.meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
            flops = program_flops(problem.step, state, problem.batch_spec)
            shares[way].append(flops + reading)
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            metrics[f"parameters_{way}_{family}"] = size
            if way in times:
                times[way].append(reads + seconds(problem, repeats=repeats))
    metrics["seconds_scalekd_over_kd"] = float(np.divide(times["scalekd"], times["kd"]).mean())
    for way in ("scalekd", "whole"):
        ratios = np.divide(shares[way], shares["kd"])
        metrics[f"flops_{way}_over_kd"] = float(ratios.mean())
    return metrics
