"""Figures of the ranking of merging methods."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.common import figures
from experiments.merging.judging import Reading
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "ranking.png": "Eight tasks by each way: mean accuracy over that of experts (%); error bars: "
    "95% interval over test images. An ensemble keeps all experts, the others one model.",
    "costs.png": "Accuracy over that of experts (%), with 95% intervals over test images, against "
    "the operations that a way takes until its model is there.",
    "tasks.png": "Test accuracy (%) of each way (rows) on each task (columns).",
}
NAMES = {
    "base": "base", "average": "average", "weights": "weighted average", "fisher": "Fisher",
    "arithmetic": "task arithmetic", "ties": "TIES", "dare": "DARE", "concrete": "concrete mask",
    "adamerging": "AdaMerging", "atlas": "aTLAS", "ensemble": "ensemble",
}  # fmt: skip
SCORE = "accuracy over the experts' (%)"


def draw(
    run: RunDirectory, tasks: Sequence[str], found: Mapping[str, Reading],
    flops: Mapping[str, float],
) -> None:  # fmt: skip
    """Draws all figures."""
    order = sorted(NAMES, key=lambda name: found[name].normalised.mean())
    names = [NAMES[name] for name in order]
    ends = {name: [100 * float(x) for x in t_interval(found[name].normalised)] for name in order}
    figures.bars(
        run.figure("ranking.png"), names, {"accuracy": [ends[name][0] for name in order]},
        {"accuracy": [(ends[name][2] - ends[name][1]) / 2 for name in order]},
        ylabel=SCORE, decimals=1, cut=True,
    )  # fmt: skip
    _costs(run, {name: own for name, own in ends.items() if flops[name] > 0}, flops)
    accuracies = np.stack([100 * found[name].accuracy for name in (*order, "experts")])
    figures.heatmap(
        run.figure("tasks.png"), accuracies, [*names, "experts"], tasks, xlabel="task",
        ylabel="way", value_label="test accuracy (%)",
    )  # fmt: skip


def _costs(
    run: RunDirectory, ends: Mapping[str, Sequence[float]], flops: Mapping[str, float]
) -> None:
    with figures.canvas(
        run.figure("costs.png"), (1.4 * figures.COLUMN, 0.9 * figures.COLUMN)
    ) as fig:
        ax = fig.add_subplot()
        for index, (name, (mean, low, high)) in enumerate(ends.items()):
            ax.errorbar(
                flops[name] / 1e9, mean, [[mean - low], [high - mean]], linestyle="none",
                capsize=2, label=NAMES[name], **figures.look(index, "color", "marker"),
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set(xlabel="operations (GFLOP)", ylabel=SCORE)
        ax.grid(visible=True, which="both")
        figures.legend(ax, len(ends))
