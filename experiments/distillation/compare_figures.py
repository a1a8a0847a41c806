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
    "ranking.png": "Accuracy on test images by each loss, means over pairs of a teacher and a "
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
    order = sorted(means, key=lambda side: means[side].mean(), reverse=True)
    ends = np.array([t_interval(means[side]) for side in order])
    figures.dots(
        run.figure("ranking.png"), [NAMES[side] for side in order],
        {"mean over pairs": (100 * ends[:, 0], 100 * (ends[:, 2] - ends[:, 0]))},
        "accuracy on test images (%)", reference=100 * float(means["label"].mean()),
    )  # fmt: skip
    of_pairs(run, right, {side: NAMES[side] for side in order})
    cells = [
        [f"{100 * mean:.1f} ± {50 * (high - low):.1f}", f"{metrics[f'mflop_{side}']:.0f}",
         f"{1e3 * metrics[f'seconds_{side}']:.1f}", f"{metrics[f'bytes_{side}']:.0f}",
         f"{metrics[f'beside_{side}']:.0f}"]
        for side, (mean, low, high) in zip(order, ends, strict=True)
    ]  # fmt: skip
    columns = ["accuracy (%)", "MFLOP a step", "ms a step", "bytes an image", "numbers beside"]
    figures.table(run.figure("costs.png"), [NAMES[side] for side in order], columns, cells)
