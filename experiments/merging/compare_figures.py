"""Figures of the ranking of merging methods."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.common import figures
from experiments.merging.judging import Reading
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "ranking.png": "Eight tasks by each way: mean accuracy over that of experts (%); error bars: "
    "95% interval over test images. An ensemble keeps all experts, Twin-Merging one model, vectors "
    "of low rank and a router, the others one model. Step 1: coefficients beside the mask move by "
    "1 a step.",
    "costs.png": "Accuracy over that of experts (%, with 95% intervals over test images), and what "
    "a way costs: operations and seconds until its model is there, with the compilation of what no "
    "earlier way had compiled, megabytes that are kept.",
    "tasks.png": "Test accuracy (%) of each way (rows) on each task (columns).",
}
NAMES = {
    "base": "base", "average": "average", "weights": "weighted average", "fisher": "Fisher",
    "regmean": "RegMean",
    "arithmetic": "task arithmetic", "ties": "TIES", "dare": "DARE", "concrete": "concrete mask",
    "adamerging": "AdaMerging", "masked": "mask, AdaMerging", "leap": "mask, AdaMerging, step 1",
    "atlas": "aTLAS", "twin": "Twin-Merging", "ensemble": "ensemble",
}  # fmt: skip


def draw(
    run: RunDirectory, tasks: Sequence[str], found: Mapping[str, Reading],
    metrics: Mapping[str, float],
) -> None:  # fmt: skip
    """Draws all figures, of readings by way and of what ways cost, as the run's metrics have it."""
    order = sorted(NAMES, key=lambda name: found[name].normalised.mean())
    names = [NAMES[name] for name in order]
    ends = [[100 * float(x) for x in t_interval(found[name].normalised)] for name in order]
    halves = [(high - low) / 2 for _, low, high in ends]
    figures.bars(
        run.figure("ranking.png"), names, {"accuracy": [mean for mean, *_ in ends]},
        {"accuracy": halves}, ylabel="accuracy over the experts' (%)", decimals=1, cut=True,
    )  # fmt: skip
    cells = [
        [f"{mean:.1f} ± {half:.1f}", f"{metrics[f'gflop_{name}']:.0f}",
         f"{metrics[f'seconds_{name}']:.0f}", f"{metrics[f'bytes_{name}'] / 1e6:.1f}"]
        for name, (mean, *_), half in zip(order[::-1], ends[::-1], halves[::-1], strict=True)
    ]  # fmt: skip
    figures.table(
        run.figure("costs.png"), names[::-1], ["accuracy (%)", "GFLOP", "s", "MB kept"], cells
    )
    accuracies = np.stack([100 * found[name].accuracy for name in (*order, "experts")])
    figures.heatmap(
        run.figure("tasks.png"), accuracies.round(), [*names, "experts"], tasks, xlabel="task",
        ylabel="way", value_label="test accuracy (%)",
    )  # fmt: skip
