"""Warped images beside images as they are: does a classifier of digits gain by augmentation?

Simard et al., Best Practices for Convolutional Neural Networks, ICDAR 2003: affine distortions are
the largest single gain on handwritten digits. The baseline also trains twice as long, and the null
warps by nothing, which costs as much as the method.
"""

from typing import Any

import numpy as np

from experiments.common.encoders import build_encoder
from experiments.common.images import open_images
from experiments.common.supervised import classification, right
from experiments.common.trial import (
    BASELINE,
    METHOD,
    NULL,
    Arm,
    Go,
    Metric,
    Question,
    Trial,
    recipe,
)
from experiments.ranges import Range
from rml import models
from rml.training import Task, TrainState


def classifier(config: Any) -> Any:
    """The network that all arms train."""
    return build_encoder(config, models.Classifier(config.classes))


def fit(config: Any, bed: None) -> Task:
    """The training problem of one run."""
    return classification(
        config, classifier(config),
        train=lambda: open_images(config, "train", labelled=True),
        held_out=lambda: open_images(config, "validation", labelled=True),
    )  # fmt: skip


def score(config: Any, bed: None, state: TrainState, part: str) -> np.ndarray:
    """By image of a part, whether it is named rightly."""
    images = open_images(config, part, labelled=True)
    return np.asarray(right(config, classifier(config), state.variables, images))


RATES = {"optimizer.learning_rate": (1e-3, 3e-3, 1e-2)}
WARPED = {"augment.order": ("random_affine",)}
TRIAL = Trial(
    metrics={"accuracy": Metric("accuracy", unit="image")},
    arms={
        "plain": Arm("images as they are", BASELINE, {}, RATES),
        "longer": Arm("the same, twice the steps", BASELINE, {"train.steps": 400}, RATES),
        "warped": Arm("warped images", METHOD, WARPED, RATES),
        "still": Arm("images warped by nothing", NULL, WARPED | {
            "augment.random_affine.degrees": 0.0, "augment.random_affine.shear": 0.0,
            "augment.random_affine.scale": (1.0, 1.0), "augment.random_affine.translate": 0.0,
        }, RATES),
    },
    fit=fit, score=score,
    headline=Question(
        "Warping digits changes a classifier's accuracy by {mean:+.1p} points over {over}",
        "warped", null="still", over=("plain", "longer"),
    ),
    go=(Go("the plain classifier has learned", 0.5, lambda means: means["plain"]),),
    source="Simard et al. 2003; data and network are this repository's", stated="2026-12-07",
)  # fmt: skip
RANGES = {"seeds": Range(1, whole=True), "tuning_seeds": Range(whole=True)}
run, CLAIMS, CAPTIONS = recipe(TRIAL)
