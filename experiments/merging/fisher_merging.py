"""Fisher merging: an average of models weighted, entry by entry, by their Fisher information.

Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832. Four settings on
one bed of experts: models of one task in the place of their ensemble; a base and its fine-tuned
model along the line between them, in and out of distribution; a target with few labels merged with
experts on other tasks; and experts on eight tasks, beside averages, task arithmetic, TIES, DARE,
RegMean, AdaMerging and ensembles. Validation images choose among a method's options, whose number
its result has: of methods that are searched it is the same. Fishers whose entries changed places
are the null. Models, data and margins are this repository's.
"""

from typing import Any

import jax
import numpy as np

from experiments.merging import fisher_figures
from experiments.merging.bed import Bed, of_bed, open_bed
from experiments.merging.fisher_ensembling import ensembling
from experiments.merging.fisher_robust import area, lines, robustness
from experiments.merging.fisher_transfer import transfer
from experiments.merging.fishers import fishers_of, shuffled
from experiments.merging.judging import Reading, differences, judged, read
from experiments.merging.ranking import baselines, choices, equally, weighted
from experiments.merging.tasks import check_named
from experiments.ranges import Range
from rml.errors import UserError
from rml.merging import floored_share
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2111.09832; model, data and margin are this repository's"
EQUAL = "weights were chosen on validation images in a first run, by which the null gained too"
STATED = "2026-11-26"
AGAIN = "2026-11-27"
"""Date of claims that were added or changed after a first measurement."""
CLAIMS = (
    Claim("Models of one task, equal weights: Fisher merging is above the plain average",
          "ensembling_equal_over_average", ">=", 0.0, f"{SOURCE}, ensembling; {EQUAL}; margin 0 "
          "since 2026-12-04", stated="2026-12-04", null="ensembling_shuffled_equal_over_average",
          says="Merging models of one task by their Fisher information changes accuracy by "
          "{mean:+.1p} points over the plain average"),
    Claim("At a validation accuracy of 99% of the fine-tuned model's, accuracy out of distribution "
          "is above that of averages by 0.3 points",
          "robust_fisher_over_average", ">=", 0.003, f"{SOURCE}, robust fine-tuning; between "
          "weights interpolated after a first run", stated=AGAIN,
          null="robust_shuffled_over_average",
          says="Merged with its base, a fine-tuned model gains {mean:+.1p} points on shifted data "
          "by Fisher information over averages as accurate on its own task"),
    Claim("Few labels: a Fisher merge with a donor is above an average with one, of as many tries, "
          "by half a point of normalised accuracy", "transfer_fisher_over_average", ">=", 0.005,
          f"{SOURCE}, intermediate-task transfer; restated after first runs, in which it was held "
          "against the target alone and a merge with the base, and the null gained as much; the "
          "null was changed after the first measurement: the target's Fisher is shuffled as well, "
          "which in results of before 2026-11-29 is not",
          stated="2026-11-29", null="transfer_shuffled_over_average",
          says="With few labels, a Fisher merge with a model of another task changes accuracy by "
          "{mean:+.1p} points over an average with one"),
    Claim("Eight tasks, equal weights: Fisher merging is above the plain average by 1 point of "
          "normalised accuracy", "eight_equal_over_average", ">=", 0.01, f"{SOURCE}; {EQUAL}",
          stated=STATED, null="eight_shuffled_equal_over_average",
          says="Merging models of eight tasks by Fisher information changes accuracy by "
          "{mean:+.1p} points over the plain average; by exchanged information, by "
          "{eight_shuffled_equal_over_average:+.1p}"),
)  # fmt: skip
RANGES = {
    "search.tries": Range(2, whole=True), "robust.points": Range(2, whole=True),
    "transfer.points": Range(2, whole=True), "ensembling.models": Range(2, whole=True),
    "fisher.examples": Range(16, whole=True),
}  # fmt: skip
READS = of_bed
CAPTIONS = fisher_figures.CAPTIONS
PICTURE = "eight.png"
STAGED = True  # targets are tuned from the experts that merging has chosen


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains or opens the bed, measures the four settings, draws."""
    check(config)
    bed = open_bed(config, run)
    fishers = fishers_of(
        bed, bed.experts, bed.heads, [own.train for own in bed.tasks.values()], **config.fisher
    )
    metrics = {"floored": float(floored_share(fishers)), "tries": float(config.search.tries)}
    eight, more = eight_tasks(config, bed, fishers)
    metrics |= more
    one, more = ensembling(config, bed, run)
    metrics |= more | differences("ensembling", {name: [own] for name, own in one.items()}, {
        "ensembling_equal_over_average": ("fisher_equal", "average"),
        "ensembling_shuffled_equal_over_average": ("shuffled_equal", "average"),
        "ensembling_fisher_over_weighted": ("fisher", "weighted_average"),
        "ensembling_lost": ("ensemble", "fisher"), "ensembling_single_lost": ("ensemble", "single"),
    })  # fmt: skip
    along = lines(config, bed)
    first, last = along["average"].validation[[0, -1]]
    levels = np.linspace(first, last, config.robust.points)
    for kind, measure in (
        ("robust", lambda line: robustness(line, config.robust.least * last)),
        ("robust_area", lambda line: area(line, levels)),
    ):
        outside = {name: measure(line) for name, line in along.items()}
        for name, there in outside.items():
            metrics[f"{kind}_{name}"] = there
            metrics[f"{kind}_{name}_over_average"] = there - outside["average"]
    few, costs = transfer(config, bed, fishers, run)
    metrics |= costs | differences("transfer", few, {
        f"transfer_{name}_over_{other}": (name, other)
        for other in ("alone", "base", "average") for name in few if name != other
    })  # fmt: skip
    fisher_figures.draw(run, eight, one, along, few)
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the settings have tasks of the bed, and shifts another one."""
    check_named(config, "ensembling.task", "robust.task", "robust.other", "transfer.targets")
    if config.robust.other == config.robust.task:
        raise UserError(f"robust.other is {config.robust.other!r}, expected another than the task")


def tries(config: Any) -> dict[str, int]:
    """How many options validation images choose from, by setting and method.

    With few labels those are weights with each donor, of which Fisher merging names the one that
    is fine-tuned further.
    """
    search, points = config.search.tries, config.transfer.points
    several = (len(config.tasks) - 1) * points
    settings = {
        "eight": choices(config)
        | {"single": len(config.tasks), "fisher": search, "shuffled": search},
        "ensembling": {
            **dict.fromkeys(("weighted_average", "fisher", "shuffled"), search),
            **dict.fromkeys(("single", "greedy"), config.ensembling.models),
        },
        "robust": dict.fromkeys(("fisher", "average", "shuffled"), config.robust.points),
        "transfer": {
            "base": points,
            **dict.fromkeys(("average", "fisher", "shuffled", "donor_tuned"), several),
        },
    }
    return {
        f"{setting}_{name}": count
        for setting, own in settings.items()
        for name, count in own.items()
    }


def eight_tasks(config: Any, bed: Bed, fishers: Any) -> tuple[dict[str, Reading], dict[str, float]]:
    """Readings of all methods on the tasks of the bed, and what the claims compare."""
    validation, test = judged(bed, "validation"), judged(bed, "test")
    found = baselines(config, bed, validation, test)
    given = {"fisher": fishers, "shuffled": shuffled(fishers, jax.random.key(config.seed))}
    for name, own in given.items():
        found[name] = read(bed, test, weighted(config, bed, bed.experts, own, validation))
    train = [own.train for own in bed.tasks.values()]
    for count in (1, config.fisher.examples // 16):
        options = config.fisher.to_dict() | {"examples": count}
        given[f"examples_{count}"] = fishers_of(bed, bed.experts, bed.heads, train, **options)
    for name, own in given.items():
        found[f"{name}_equal"] = read(bed, test, equally(bed, bed.experts, own))
    metrics: dict[str, float] = {}
    for name, own in found.items():
        Progress().note(
            f"{name}: {100 * own.normalised.mean():.1f}% normalised, "
            f"{100 * own.accuracy.mean():.1f}% mean accuracy"
        )
        metrics[f"eight_accuracy_{name}"] = float(own.accuracy.mean())
    plain, few = "fisher_equal", f"examples_{config.fisher.examples // 16}_equal"
    pairs = {
        f"eight_{name}_over_fisher": (name, "fisher")
        for name in found if not name.endswith(("fisher", "equal"))
    }  # fmt: skip
    metrics |= differences("eight", {name: [own] for name, own in found.items()}, pairs | {
        "eight_equal_over_average": (plain, "average"),
        "eight_shuffled_equal_over_average": ("shuffled_equal", "average"),
        "eight_arithmetic_over_equal": ("task_arithmetic", plain),
        "examples_lost": (plain, few), "one_example_lost": (plain, "examples_1_equal"),
    })  # fmt: skip
    return found, metrics
