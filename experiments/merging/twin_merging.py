"""Twin-merging: a shared expert and small exclusive vectors, which a router adds input by input.

Lu et al., Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging,
arXiv:2406.15479. On a bed of eight experts the shared one is tuned task arithmetic, vectors keep a
tenth of their rank, and the router reads the shared expert's features. Scales, static weights and
the router's epoch are chosen on validation images. The mixed test images are judged by the head
of each one's task, as the authors do, and by one head over all classes. Models, data and margins
are this repository's.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common.claims import with_bounds
from experiments.merging import twin_figures
from experiments.merging.bed import of_bed, open_bed
from experiments.merging.judging import differences, judged
from experiments.merging.ranking import choices
from experiments.merging.twin_arms import of_mixtures, of_models
from experiments.merging.twin_costs import energies, of_memory, of_sizes, of_time
from experiments.merging.twin_parts import (
    accuracy_lost,
    by_heads_of,
    by_one_head,
    by_task_heads,
    merged,
    of_weights,
    parts_of,
    static_tries,
)
from experiments.merging.twin_tasks import check_tasks, of_counts, of_unseen, slopes
from experiments.ranges import Range
from rml.merging import save_twin
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory
from rml.training.durable import replacing

SOURCE = "arXiv:2406.15479; model, data and margin are this repository's"
STATED = "2026-11-27"
OWN = "By the head of each image's own task"
ONE = "By one head over the classes of all tasks, as where nothing says the task"
ADDED = f"{SOURCE}; added after a first run"
CLAIMS = (
    Claim(f"{OWN}, Twin-merging is above tuned task arithmetic", "twin_over_tuned", ">=", 0.0,
          f"{SOURCE}: 27.9 points at GLUE; margin 0 since 2026-12-04", stated="2026-12-04",
          null="uniform_over_tuned",
          says="By the head of each image's task, Twin-Merging changes accuracy by {mean:+.1p} "
          "points over tuned task arithmetic, to {normalised_twin:.0%} of the experts'"),
    Claim(f"{ONE}, it is above tuned task arithmetic by 10 points", "one_head_twin_over_tuned",
          ">=", 0.10, ADDED, stated=STATED, null="one_head_uniform_over_tuned",
          says="By one head over the classes of all tasks, Twin-Merging changes accuracy by "
          "{mean:+.1p} points over tuned task arithmetic, to {one_head_twin:.0%} of the experts'"),
    Claim(f"{OWN}, weights of each mixed image are above the best static ones by 5 points",
          "twin_over_static", ">=", 0.05, f"{SOURCE}: dynamic over static merging",
          stated=STATED, null="shuffled_over_static",
          says="By the head of each image's task, weights chosen for each image change accuracy by "
          "{mean:+.1p} points over the best weights for all"),
    Claim(f"{OWN}, a tenth of the rank loses at most 1 point against all of it", "rank_lost", "<=",
          0.01, SOURCE, stated=STATED, null="shared_lost",
          says="By the head of each image's task, all ranks of the experts' own parts change "
          "accuracy by {mean:+.1p} points over a tenth of them"),
)  # fmt: skip
PAIRS = (
    ("twin", "tuned"), ("uniform", "tuned"), ("twin", "ties"), ("uniform", "ties"),
    ("twin", "static"), ("shuffled", "static"), ("twin", "adamerging"), ("twin", "multitask"),
    ("hard", "twin"), ("experts", "twin"), ("oracle", "twin"), ("biases", "twin"),
    ("biases", "tuned_biases"),
)  # fmt: skip
LOST = {"rank_lost": ("full", "twin"), "shared_lost": ("full", "tuned")}
RANGES = {
    "router.most": Range(2, whole=True), "router.epochs": Range(1, whole=True),
    "router.batch_size": Range(2, whole=True), "timing.repeats": Range(1, whole=True),
    "timing.batch_size": Range(1, whole=True), "twin.fraction": Range(0, 1, above=True),
}  # fmt: skip
READS = of_bed
CAPTIONS = twin_figures.CAPTIONS
PICTURE = "methods.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains or opens the bed, merges and saves, trains the router, judges all arms, draws."""
    check_tasks(config)
    bed = open_bed(config, run)
    validation, test = judged(bed, "validation"), judged(bed, "test")
    images, tasks = test.images, list(bed.tasks)
    whole = merged(config, bed, validation, list(range(len(tasks))))
    with replacing(run.path / "twin") as place:
        save_twin(place, whole.twin, router=whole.learned.variables, names=tasks)
    weights = whole.weights(images)
    found = of_models(config, run, whole, validation, images)
    found |= of_mixtures(config, whole, validation, images, weights)
    full = parts_of(bed, whole.tuned, compress="none")
    found["full"] = of_weights(bed, full, weights, images)
    readings = {
        "task": {name: by_task_heads(bed, test, own) for name, own in found.items()},
        "one": {name: by_one_head(bed, test, own) for name, own in found.items()},
    }
    progress = Progress()
    for name, own in readings["task"].items():
        one = readings["one"][name].normalised.mean()
        progress.note(f"{name}: {100 * own.normalised.mean():.1f}%, one head {100 * one:.1f}%")
    pairs = {f"{first}_over_{second}": (first, second) for first, second in PAIRS}
    metrics: dict[str, Any] = differences(
        "normalised", {name: [own] for name, own in readings["task"].items()}, pairs | LOST
    )
    for setting, kind in (("normalised", "task"), ("one_head", "one")):
        metrics |= with_bounds(f"{setting}_twin", t_interval(readings[kind]["twin"].normalised))
    for name, way in (("accuracy_lost", "twin"), ("accuracy_lost_uniform", "uniform")):
        lost = accuracy_lost(test, readings["task"]["experts"], readings["task"][way])
        metrics |= with_bounds(name, t_interval(lost))
    metrics |= differences(
        "one_head", {name: [own] for name, own in readings["one"].items()},
        {f"one_head_{name}": pair for name, pair in pairs.items()},
    )  # fmt: skip
    places = jnp.argmax(weights, axis=-1)
    metrics |= {
        f"routed_heads_{name}": by_heads_of(bed, test, found[name], places).normalised.mean()
        for name in ("twin", "tuned", "hard")
    }
    metrics["router_accuracy"] = jnp.mean(places == images.task)
    gaps, few = of_counts(config, whole, validation, test)
    metrics |= slopes(gaps) | of_unseen(config, bed, few, test)
    metrics |= {f"gap_{count}": own.twin.mean() for count, own in gaps.items()}
    sizes = of_sizes(config, whole, test, weights)
    metrics |= energies(config, whole) | of_memory(bed, whole.twin)
    metrics |= of_time(config, whole, test, weights)
    task = np.asarray(images.task)
    table = np.stack([np.asarray(weights)[task == i].mean(0) for i in range(len(tasks))])
    twin_figures.draw(run, tasks, readings, table, sizes, gaps)
    return {name: float(value) for name, value in metrics.items()}


def tries(config: Any) -> dict[str, int]:
    """How many scales, weights and epochs of the router validation images choose from, by arm.

    Every arm of exclusive vectors has the scale of the shared expert.
    """
    scales = config.search.tries
    routed = scales + config.router.epochs
    return {
        **dict.fromkeys(("tuned", "ties", "dare", "uniform", "oracle", "tuned_biases"), scales),
        "adamerging": choices(config)["adamerging"],
        "static": scales + static_tries(config),
        **dict.fromkeys(("twin", "shuffled", "top", "hard", "biases", "full"), routed),
    }
