"""Figures of the recipe on ScaleKD."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.common import figures
from experiments.distillation.scalekd_measures import Right
from experiments.distillation.scalekd_sides import SIZED, depths, main
from rml.distillation import Projected
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "arms.png": "Accuracy on test images of the sides, means over a ConvNet, a Mixer and a ViT, "
    "with 95% intervals over images.",
    "parts.png": "Points of accuracy on test images that ScaleKD has above itself without a part, "
    "or with what stands in brackets in its place, with 95% intervals over images.",
    "size.png": "Accuracy on test images against the size of the teacher, means over a ConvNet, "
    "a Mixer and a ViT, with 95% intervals over images.",
    "attention.png": "Attention of places of the teacher's grid to the student's map of the last "
    "stage but one, direct view, means over heads. White is the place that gets most.",
    "features.png": "Tokens without their mean over an image, of unit length, along the direction "
    "in which the teacher's vary most: the teacher's last ones, and what projectors of the "
    "alternative view make of two stages of students. White is 1, black -1.",
}
NAMES = {
    "label": "label alone", "fitnet": "FitNet", "kd": "KD", "ofa": "One-for-All",
    "cosine": "KD, cosine, linear map",
    "linear": "ScaleKD, linear maps", "shuffled": "ScaleKD, others' tokens",
    "few_label": "label, 1/4 of images", "few_scalekd": "ScaleKD, 1/4 of images",
    "scalekd": "ScaleKD",
}  # fmt: skip
"""Arms as figures call them."""
PARTS = {
    "linear": "attention (linear maps)", "direct": "alternative view", "alternative": "direct view",
    "pathless": "teacher's blocks", "learned": "queries (learned)",
    "traditional": "setting (traditional)", "labelled": "KD", "flat": "scale 5 (scale 1)",
    "again": "seed (another)",
}  # fmt: skip
"""What a side lacks that ScaleKD has."""
SHORT = {"convnet": "CNN", "mixer": "Mixer", "vit": "ViT"}
"""Families as figures call them."""


def of_arms(run: RunDirectory, right: Right) -> None:
    """Draws accuracies of all sides, and what parts are worth."""
    means = {arm: np.mean(list(own.values()), axis=0) for arm, own in right.items()}
    centre, low, high = np.array([t_interval(means[arm]) for arm in NAMES]).T
    figures.bars(
        run.figure("arms.png"), list(NAMES.values()), {"accuracy": centre},
        {"accuracy": (high - low) / 2}, ylabel="accuracy on test images", decimals=3, cut=True,
    )  # fmt: skip
    gains = [t_interval(100 * (means["scalekd"] - means[arm])) for arm in PARTS]
    centre, low, high = np.array(gains).T
    figures.bars(
        run.figure("parts.png"), list(PARTS.values()), {"gain": centre}, {"gain": (high - low) / 2},
        ylabel="gain by the part / points", decimals=2,
    )  # fmt: skip


def of_sizes(config: Any, run: RunDirectory, right: Right, sizes: Mapping[str, int]) -> None:
    """Draws accuracy against the number of parameters of the teacher."""
    last = main(config)
    x = [sizes[name] / 1000 for name in depths(config)]
    series = {}
    for side in SIZED:
        arms = [side if name == last else f"{side}_{name}" for name in depths(config)]
        found = [t_interval(np.mean(list(right[arm].values()), axis=0)) for arm in arms]
        series[NAMES[side]] = (x, *np.array(found).T)
    label = np.mean(list(right["label"].values()))
    figures.curves(
        run.figure("size.png"), series, "parameters of the teacher / thousand",
        "accuracy on test images", reference=(NAMES["label"], float(label)),
    )  # fmt: skip


def of_attention(
    config: Any, run: RunDirectory, images: np.ndarray, weights: Mapping[str, Any]
) -> None:
    """Draws where places of the teacher's grid look, an image and its maps a row."""
    height, width = images.shape[1:3]
    vit = config.teachers[main(config)]
    rows, columns = -(-height // vit.patch_size), -(-width // vit.patch_size)
    places = [(0, 0), (rows // 2, columns // 2), (rows - 1, 0), (rows // 2, columns - 1)]
    grid, labels = [], []
    for family, own in weights.items():
        for image, each in zip(images, np.asarray(own), strict=True):
            side = round(each.shape[1] ** 0.5)
            maps = [each[row * columns + column].reshape(side, side) for row, column in places]
            shown = [
                np.asarray(jax.image.resize(x / x.max(), (height, width), "nearest")) for x in maps
            ]
            grid.append([image, *shown])
            labels.append(f"{SHORT.get(family, family)}, {side}x{side}")
    names = ["image", *(f"from ({row + 1}, {column + 1})" for row, column in places)]
    figures.image_grid(run.figure("attention.png"), grid, labels, names)


def of_features(
    run: RunDirectory, images: np.ndarray, teacher: Any, made: Mapping[str, Projected]
) -> None:
    """Draws one coordinate of the teacher's tokens and of the students', an image a row."""
    size = images.shape[1:3]
    units = {"teacher": varying(teacher)}
    for family, own in made.items():
        name = SHORT.get(family, family)
        units |= {f"{name}, last but one": varying(own.third[1]),
                  f"{name}, last": varying(own.fourth[1])}  # fmt: skip
    grid = []
    for i, image in enumerate(images):
        direction = np.linalg.svd(units["teacher"][i])[2][0]
        maps = [(1 + own[i] @ direction) / 2 for own in units.values()]
        side = round(len(maps[0]) ** 0.5)
        squares = [x.reshape(side, side) for x in maps]
        grid.append([image, *(np.asarray(jax.image.resize(x, size, "nearest")) for x in squares)])
    names = ["image", *(name.replace(", ", "\n") for name in units)]
    figures.image_grid(run.figure("features.png"), grid, None, names)


def varying(tokens: Any) -> np.ndarray:
    """Tokens [n, t, d] without their mean over an image, of unit length."""
    own = np.asarray(tokens, float)
    own = own - own.mean(1, keepdims=True)
    return own / np.maximum(np.linalg.norm(own, axis=-1, keepdims=True), 1e-12)
