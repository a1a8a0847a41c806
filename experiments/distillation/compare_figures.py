"""Figures of the ranking of distillation losses."""

from collections.abc import Mapping

import numpy as np

from experiments.common import figures
from experiments.distillation.ofakd_figures import NAMES as KNOWN
from experiments.distillation.ofakd_figures import of_pairs
from experiments.distillation.pairs import Right
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "ranking.png": "Accuracy on test images by each loss, means over four pairs of a teacher and a "
    "student; bars: 95% intervals over images. The label alone is dashed.",
    "pairs.png": "Accuracy on test images above that of the label alone, in points, by loss (rows) "
    "and by pair of teacher and student (columns).",
    "costs.png": "Accuracy (%, with 95% intervals over test images), and what a loss costs: "
    "operations and time of a step of one student, bytes kept of the teacher's outputs for each "
    "image, numbers trained beside the student.",
}
NAMES = KNOWN | {"ofa": "OFA, exits", "enhanced": "OFA, no exits"}
"""Sides as figures call them."""


def draw(run: RunDirectory, right: Right, metrics: Mapping[str, float]) -> None:
    """Draws all figures, of what students name rightly and of costs as the metrics have them."""
    means = {side: np.mean(list(own.values()), axis=0) for side, own in right.items()}
    order = sorted(means, key=lambda side: means[side].mean())
    ends = np.array([t_interval(means[side]) for side in order])
    with figures.canvas(run.figure("ranking.png"), (figures.COLUMN, 2.6)) as figure:
        ax = figure.add_subplot()
        centre, low, high = 100 * ends.T
        place = np.arange(len(order))
        ax.errorbar(
            centre, place, xerr=(centre - low, high - centre), linestyle="none", capsize=2,
            elinewidth=0.9, **figures.look(0, "color", "marker"),
        )  # fmt: skip
        ax.axvline(100 * means["label"].mean(), color="#333333", ls="--", lw=0.9)
        ax.set_yticks(place, [NAMES[side] for side in order])
        ax.set(xlabel="accuracy on test images (%)")
        ax.grid(visible=True)
    of_pairs(run, right, {side: NAMES[side] for side in order[::-1]})
    cells = [
        [f"{100 * mean:.1f} ± {50 * (high - low):.1f}", f"{metrics[f'mflop_{side}']:.0f}",
         f"{1e3 * metrics[f'seconds_{side}']:.1f}", f"{metrics[f'bytes_{side}']:.0f}",
         f"{metrics[f'beside_{side}']:.0f}"]
        for side, (mean, low, high) in zip(order[::-1], ends[::-1], strict=True)
    ]  # fmt: skip
    columns = ["accuracy (%)", "MFLOP a step", "ms a step", "bytes an image", "numbers beside"]
    figures.table(run.figure("costs.png"), [NAMES[side] for side in order[::-1]], columns, cells)
