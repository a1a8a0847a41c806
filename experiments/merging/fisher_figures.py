"""Figures of the recipe on Fisher merging."""

from collections.abc import Mapping

import numpy as np

from experiments.common import figures
from experiments.merging.fisher_robust import SHIFTS, Line
from experiments.merging.judging import Reading, over_targets
from rml.ops import t_interval
from rml.training import RunDirectory

INTERVAL = "error bars: 95% interval over test images"
CAPTIONS = {
    "eight.png": f"One model for eight tasks: mean accuracy over that of experts (%); {INTERVAL}.",
    "ensembling.png": "Models of one task and what is made of them: accuracy over that of the "
    f"task's expert (%); {INTERVAL}.",
    "robust.png": f"Mean accuracy on {len(SHIFTS)} sets of shifted images against accuracy on "
    "the task's own test images, along the line from the base to the fine-tuned model.",
    "weights.png": "Accuracy against the weight of the fine-tuned model.",
    "transfer.png": "A target with few labels, alone and merged with a donor: accuracy over that "
    f"of the expert with all labels (%), mean over targets; {INTERVAL}.",
}
NAMES = {
    "base": "base", "single": "one expert", "average": "average", "weighted_average":
    "weighted average", "task_arithmetic": "task arithmetic", "ties": "TIES", "dare": "DARE",
    "regmean": "RegMean", "adamerging": "AdaMerging", "fisher": "Fisher",
    "fisher_equal": "Fisher, equal", "shuffled": "Fisher, shuffled",
    "ensemble": "ensemble of outputs", "greedy": "greedy soup", "alone": "target alone",
    "donor_tuned": "donor fine-tuned",
}  # fmt: skip


def draw(
    run: RunDirectory,
    eight: Mapping[str, Reading],
    one: Mapping[str, Reading],
    along: Mapping[str, Line],
    few: Mapping[str, list[Reading]],
) -> None:
    """Draws all figures."""
    for file, found in (("eight.png", eight), ("ensembling.png", one)):
        shown = {name: own.normalised for name, own in found.items() if name in NAMES}
        _bars(run, file, shown, NAMES)
    outside = {
        NAMES[name]: (100 * line.inside, 100 * line.outside.mean(1)) for name, line in along.items()
    }
    figures.curves(
        run.figure("robust.png"), outside, "accuracy on the task's test images (%)",
        "accuracy on shifted images (%)",
    )  # fmt: skip
    weights = {}
    for name in ("average", "fisher"):
        line = along[name]
        weights[f"{NAMES[name]}, in distribution"] = (line.weights, 100 * line.inside)
        weights[f"{NAMES[name]}, shifted"] = (line.weights, 100 * line.outside.mean(1))
    figures.curves(
        run.figure("weights.png"), weights, "weight of the fine-tuned model", "accuracy (%)"
    )
    values = {name: over_targets([own.normalised for own in found]) for name, found in few.items()}
    _bars(run, "transfer.png", values, NAMES | {"base": "merged with base"})


def _bars(
    run: RunDirectory, file: str, found: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> None:
    order = sorted(found, key=lambda name: found[name].mean())
    ends = [t_interval(found[name]) for name in order]
    figures.bars(
        run.figure(file), [names[name] for name in order],
        {"accuracy": [100 * float(own.mean) for own in ends]},
        {"accuracy": [50 * float(own.high - own.low) for own in ends]},
        ylabel="accuracy over the experts' (%)", decimals=1, cut=True,
    )  # fmt: skip
