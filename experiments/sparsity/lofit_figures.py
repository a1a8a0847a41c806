"""Figures of the recipe on LoFiT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import figures
from rml.ops import t_interval
from rml.training import RunDirectory

WAYS = {
    "random": "at random", "other": "of other tasks", "gradient": "by gradients",
    "bias_norm": "by all offsets", "probes": "by probes", "iti": "by probes,\nshifted (ITI)",
}  # fmt: skip
"""Other ways of choosing as many heads, by how names of arms begin."""
TUNED = {
    "lofit": "LoFiT",
    "lora": "adapters",
    "biases": "biases",
    "red": "RED",
    "full": "everything",
}
CAPTIONS = {
    "scores.png": "Norm of the change A of each head's scale after step 1, of one sample of texts "
    "of each task.",
    "heads.png": "Accuracy on test texts against the number of heads that LoFiT tunes, and of a "
    "tenth of all chosen otherwise, one point a draw or task; bars: 95% interval over texts. The "
    "frozen model is dashed.",
    "numbers.png": "Accuracy on test texts against how many numbers are trained: from 3% to all of "
    "the heads, adapters by rank, and other ways; bars: 95% interval over texts.",
}


def draw(
    run: RunDirectory, scores: Mapping[str, np.ndarray], arms: Mapping[str, Any],
    frozen: np.ndarray,
) -> None:  # fmt: skip
    """Draws scores of heads by task, and accuracies against heads and numbers."""
    layers = [str(layer + 1) for layer in range(len(next(iter(scores.values()))))]
    figures.heatmap(
        run.figure("scores.png"), np.stack(list(scores.values())), layers, list(scores),
        xlabel="heads of each task", ylabel="layer", value_label="norm of A",
    )  # fmt: skip
    width = arms["lofit_1"].edits.offset.shape[-1]
    ours = starting("lofit", arms)
    counts = [arm.numbers // width for arm in ours]
    with figures.canvas(run.figure("heads.png"), (2 * figures.COLUMN, 2.6)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 4))
        points(left, counts, ours, 0, linestyle="-")
        left.set(xscale="log", xlabel="heads tuned by LoFiT", ylabel="accuracy on test texts")
        left.set_xticks(counts, [str(count) for count in counts])
        left.minorticks_off()
        for index, kind in enumerate(WAYS):
            own = starting(kind, arms)
            points(right, index + 0.2 * (np.arange(len(own)) - (len(own) - 1) / 2), own, index + 1)
        right.set_xticks(range(len(WAYS)), list(WAYS.values()), rotation=30, ha="right")
        right.set(xlabel=f"{ours[1].numbers // width} heads, chosen otherwise")
        for ax in (left, right):
            ax.axhline(frozen.mean(), color="#333333", ls="--", lw=0.9)
            ax.grid(visible=True)
    with figures.canvas(run.figure("numbers.png"), (figures.COLUMN, 2.8)) as figure:
        ax = figure.add_subplot()
        for index, (kind, name) in enumerate(TUNED.items()):
            own = starting(kind, arms)
            sizes = [arm.numbers for arm in own]
            points(ax, sizes, own, index, label=name, linestyle="-" if len(own) > 1 else "none")
        ax.axhline(frozen.mean(), color="#333333", ls="--", lw=0.9, label="frozen")
        ax.set(xscale="log", xlabel="trained numbers", ylabel="accuracy on test texts")
        ax.grid(visible=True)
        figures.legend(ax, len(TUNED) + 1, above=True)


def starting(kind: str, arms: Mapping[str, Any]) -> list[Any]:
    """The arms whose names begin so."""
    return [arm for name, arm in arms.items() if name.startswith(kind)]


def points(ax: Any, x: Any, arms: list[Any], look: int, **options: Any) -> None:
    """Draws accuracies with their intervals over texts."""
    if not arms:
        return
    mean, low, high = t_interval(np.stack([arm.right.astype(float) for arm in arms]))
    style = {"linestyle": "none", "capsize": 1.5, "elinewidth": 0.7} | options
    ax.errorbar(
        x, mean, (mean - low, high - mean), **figures.look(look, "color", "marker"), **style
    )
