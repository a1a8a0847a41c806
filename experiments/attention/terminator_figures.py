"""Figures of the recipe on Terminator."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from rml.models.terminator import BRANCHES
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "kernels.png": "Global kernels by block, four channels of each spread over all: as they are "
    "drawn, and trained. Each has its own scale of grey.",
    "branches.png": "What the branches of each block compute of one image, the mean over channels; "
    "each has its own scale of grey. G and HI see the whole image, L near places alone, and f is "
    "mixed place by place.",
    "courses.png": "Accuracy on training batches against steps, a mean over the last 20; all with "
    "the optimiser that was chosen for Terminator.",
    "accuracies.png": "Accuracy on test images by optimiser, and its 95% interval over images; in "
    "brackets the parameters. Ablations of Terminator are trained with one optimiser.",
}
NAMES = {
    "terminator": "Terminator", "no_slow": "no slow loss", "no_hyper": "K = 1, no slow loss",
    "no_wide": "no global branches", "no_near": "no local branches",
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
            rows.append([_shades(own[..., channel]) for channel in channels])
            names.append(f"block {i}, {name}")
    title = "Global kernels of each block, as they are drawn and trained"
    figures.image_grid(run.figure("kernels.png"), rows, names, None, title)


def of_branches(run: RunDirectory, image: Any, branches: Sequence[Sequence[Any]]) -> None:
    """Draws an image [h, w] and, by block, the branches' outputs [h, w, c] in their order."""
    rows = [
        [_shades(image), *(_shades(np.asarray(one).mean(axis=-1)) for one in own)]
        for own in branches
    ]
    names = [f"block {i}" for i in range(len(rows))]
    title = "Outputs of the branches of each block"
    figures.image_grid(run.figure("branches.png"), rows, names, ("image", *BRANCHES), title)


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


def _shades(plane: Any) -> np.ndarray:
    """A plane from its least value, black, to its greatest, white."""
    wide = np.asarray(plane, np.float64)
    return (wide - wide.min()) / np.maximum(np.ptp(wide), 1e-12)
