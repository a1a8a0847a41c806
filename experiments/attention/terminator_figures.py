"""Figures of the recipe on Terminator."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "kernels.png": "Global kernels by block, four channels of each spread over all: as they are "
    "drawn, and trained. Each has its own scale of grey.",
    "courses.png": "Accuracy on training batches against steps, a mean over the last 20; all with "
    "the optimiser that was chosen for Terminator.",
    "accuracies.png": "Accuracy on test images by optimiser, and its 95% interval over images; in "
    "brackets the parameters. Variants of Terminator are trained with one optimiser.",
}
NAMES = {
    "terminator": "Terminator", "no_slow": "no slow loss", "no_hyper": "no kernels (K = 1)",
    "no_wide": "local branches only", "no_near": "global branches only",
    "batch": "batch standard only", "instance": "instance standard only",
    "resnet": "residual net", "convnet": "convolutions",
}  # fmt: skip
"""Sides as figures call them."""
COURSES = ("terminator", "no_slow", "no_hyper", "resnet", "convnet")
"""Sides whose training is drawn."""
SHOWN = 4
"""Channels of a kernel that are drawn."""


def of_kernels(run: RunDirectory, grids: Mapping[str, Sequence[Any]]) -> None:
    """Draws kernels [h, w, c] of each block at the start and trained."""
    rows, names = [], []
    for i in range(len(grids["start"])):
        for name in grids:
            own = np.asarray(grids[name][i], np.float64)
            channels = np.linspace(0, own.shape[-1] - 1, min(SHOWN, own.shape[-1])).astype(int)
            low, high = own.min(axis=(0, 1)), own.max(axis=(0, 1))
            shades = (own - low) / np.maximum(high - low, 1e-12)
            rows.append([shades[..., channel] for channel in channels])
            names.append(f"block {i}, {name}")
    title = "Global kernels of each block, as they are drawn and trained"
    figures.image_grid(run.figure("kernels.png"), rows, names, None, title)


def of_courses(
    run: RunDirectory, found: Mapping[tuple[str, str], Any], optimizers: Mapping[str, str]
) -> None:
    """Draws the accuracy on training batches against steps, with Terminator's optimiser."""
    own = optimizers["terminator"]
    series = {
        shown: (np.arange(1, len(found[side, own].course) + 1), found[side, own].course)
        for side, shown in NAMES.items()
        if side in COURSES and (side, own) in found
    }
    figures.curves(
        run.figure("courses.png"), series, "step", "accuracy on training batches",
        f"Training with {own}",
    )  # fmt: skip


def of_accuracies(
    run: RunDirectory, found: Mapping[tuple[str, str], Any], metrics: Mapping[str, Any]
) -> None:
    """Draws the accuracy on test images by side and optimiser."""
    optimizers = sorted({optimizer for _, optimizer in found})
    nothing = np.full(len(NAMES), np.nan)
    values, halves = ({optimizer: nothing.copy() for optimizer in optimizers} for _ in range(2))
    labels = []
    for i, (side, shown) in enumerate(NAMES.items()):
        model = side if side in ("resnet", "convnet") else "terminator"
        labels.append(f"{shown} ({metrics[f'parameters_{model}'] / 1e3:.0f}k)")
        for optimizer in optimizers:
            if (side, optimizer) in found:
                right = found[side, optimizer].right.astype(np.float64)
                mean, low, high = t_interval(right)
                values[optimizer][i], halves[optimizer][i] = mean, (high - low) / 2
    figures.bars(
        run.figure("accuracies.png"), labels, values, halves,
        ylabel="accuracy on test images", decimals=2, cut=True,
    )  # fmt: skip
