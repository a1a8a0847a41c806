"""A trial that takes a second: smoothed labels beside plain ones, on scikit-learn's digits."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from experiments.common.trial import BASELINE, METHOD, NULL, Arm, Go, Metric, Question, Trial
from rml import data
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

RATES = {"optimizer.learning_rate": (0.01, 0.03, 0.1)}
CLASSES = 10


@cache
def parts() -> dict[str, data.ArraySource]:
    """Digits for training, validation and test."""
    digits = load_digits()
    images, labels = digits.data.astype(np.float32) / 16, digits.target
    names = tuple(map(str, range(CLASSES)))
    cuts = {"train": slice(200), "validation": slice(200, 600), "test": slice(600, 1797)}
    return {
        name: data.ArraySource(images[own], labels[own], class_names=names)
        for name, own in cuts.items()
    }


def fit(config: Any, bed: Any) -> Task:
    """A linear classifier whose targets are smoothed, or moved to another class for the null."""
    del bed
    model = nn.Dense(CLASSES)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        logits = model.apply(state.training_variables(params), batch["image"])
        labels = (batch["label"] + config.shift) % CLASSES
        targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), config.smoothing)
        return Loss(jnp.mean(optax.softmax_cross_entropy(logits, targets)))

    return gradient_task(
        loss=loss,
        init_variables=lambda key: model.init(key, jnp.zeros((1, 64))),
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, parts_=1: data.batches(
            parts()["train"], batch_size=32, seed=config.seed, part=part, parts=parts_
        ),
        evaluate=lambda state: {},
        batch_spec={
            "image": jax.ShapeDtypeStruct((32, 64), jnp.float32),
            "label": jax.ShapeDtypeStruct((32,), jnp.int32),
        },
    )


def score(config: Any, bed: Any, state: TrainState, part: str) -> np.ndarray:
    """By image, whether it is named right."""
    del config, bed
    source = parts()[part]
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return np.argmax(nn.Dense(CLASSES).apply(state.variables, images), -1) == source.labels


def get_config() -> ConfigDict:
    """The setting that all arms share."""
    return ConfigDict(
        {
            "experiment": "contrastive.simclr",
            "seed": 0, "seeds": 3, "tuning_seeds": 2, "smoothing": 0.0, "shift": 0, "mesh": {},
            "optimizer": {
                "name": "adamw", "learning_rate": 0.01, "schedule": "constant", "warmup_steps": 0,
                "final_scale": 1.0, "weight_decay": 0.0, "momentum": 0.9, "b2": 0.999,
                "clip_norm": 0.0, "accumulate": 1, "ema_decay": 0.0,
            },
            "train": {"steps": 6, "log_every": 2, "checkpoint_every": 3},
        }
    )  # fmt: skip


TRIAL = Trial(
    metrics={"accuracy": Metric("accuracy", unit="digit")},
    arms={
        "plain": Arm("plain labels", BASELINE, {}, RATES),
        "longer": Arm("plain labels, twice as long", BASELINE, {"train.steps": 12}, RATES),
        "smooth": Arm("smoothed labels", METHOD, {"smoothing": 0.1}, RATES),
        "moved": Arm("smoothed labels of other classes", NULL,
                     {"smoothing": 0.1, "shift": 1}, RATES),
    },
    fit=fit,
    score=score,
    costs=lambda config, bed, state: {
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    },
    headline=Question(
        "Smoothed labels change accuracy by {mean:+.1p} points over {over}", "smooth",
        null="moved", over=("plain", "longer"),
    ),
    questions={
        "longer_pays": Question("Twice as long is {mean:+.1p} points better", "longer",
                                null="moved", over=("plain",)),
        "error_ratio": Question("{mean:.2f} times the accuracy of {over}", "smooth", null="moved",
                                over=("plain",), ratio=True, margin=1.0),
    },
    go=(Go("plain labels are above chance", 0.2, lambda means: means["plain"]),),
    source="arXiv:1512.00567", stated="2026-12-04",
)  # fmt: skip
