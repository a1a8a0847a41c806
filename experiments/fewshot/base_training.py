"""Base training: a classifier of the base classes, whose encoder novel classes are told apart with.

Cross-entropy with smoothed labels on augmented images, no episodes: Ziko et al., Transductive
Few-Shot Learning: Clustering is All You Need?, arXiv:2106.09516 ("standard training on the base
classes"); labels are smoothed by 0.1 as in its public code.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures, pretraining
from experiments.common.claims import STRANGERS
from experiments.common.class_parts import image_parts
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.evaluators import pixels
from experiments.common.images import augmentation, warn_of_oddities
from experiments.common.supervised import classification
from experiments.fewshot import common
from experiments.ranges import Range
from rml import evaluation, fewshot, models
from rml.encoder import ImageEmbedder
from rml.fewshot import Setting, simple_shot
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = "target of this repository on this data, not a paper's"
CLAIMS = (
    Claim("SimpleShot at 1 shot on novel classes is above that on raw pixels",
          "novel_over_pixels", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="novel_untrained_over_pixels",
          says="Base training changes accuracy on novel classes at 1 shot by {mean:+.1p} points "
          "over raw pixels ({novel:.1%} against {novel_pixels:.1%})"),
    Claim("SimpleShot at 1 shot on novel classes is above the untrained encoder's by 5 points",
          "novel_over_untrained", ">=", 0.05, SOURCE,
          stated="2026-11-24", null_run="strangers",
          says="Base training changes it by {mean:+.1p} points over the untrained encoder"),
)  # fmt: skip
NULLS = STRANGERS
RANGES = {"episodes.count": Range(2, whole=True)}  # over which there is an interval
CAPTIONS = {
    "views.png": "Training images and their augmentations.",
    "loss.png": "Cross-entropy with smoothed labels against steps.",
    "accuracy.png": "Accuracy on held-out images of the base classes against steps.",
    "embedding.png": "Features of images of novel classes in two dimensions.",
}
PICTURE = "embedding.png"


def build_model(config: Any) -> Any:
    """Builds the encoder that a config names, with a classifier of its base classes."""
    head = models.Classifier(common.num_base(config), dtype=jnp.dtype(config.dtype), **config.head)
    return build_encoder(config, head)


def task(config: Any) -> Task:
    """The training problem of a config."""
    parts = cache(lambda: image_parts(config))  # a task is made without opening data
    return classification(
        config,
        build_model(config),
        train=lambda: parts()["base"],
        held_out=lambda: parts()["held_out"],
    )


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_model(config), config, state)


def train(config: Any, run: RunDirectory) -> TrainState:
    """Trains as the config says, in the run directory, and draws the course."""
    state = pretraining.train_on_mesh(config, run, task(config), shown="eval/accuracy")
    labels = {"train/loss": "cross-entropy (nats)", "eval/accuracy": "accuracy on held-out images"}
    figures.training_curves(run.figure, run.path, labels)
    return state


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, compares trained features with untrained ones and pixels on episodes, draws.

    What the claims compare has an interval over episodes: Student's of the paired differences.
    """
    common.check_transform(config)
    common.check_shots(config)
    wanted = common.settings(config)
    first = Setting(config.episodes.ways[0], 1, config.episodes.queries)
    parts, problem = image_parts(config), task(config)
    common.check_classes({"novel": parts["novel"].labels}, wanted)
    warn_of_oddities(parts["base"], parts["held_out"])
    trained = train(config, run)
    untrained = pretraining.first_state(config, problem)
    metrics = {"accuracy": problem.evaluate(trained)["accuracy"]}
    compared: dict[str, Callable[[Any], Any]] = {
        "": encoder(config, trained), "_pixels": pixels, "_untrained": encoder(config, untrained),
    }  # fmt: skip
    features = {name: common.encode_parts(config, parts, e) for name, e in compared.items()}
    accuracies: dict[str, np.ndarray] = {}
    for name, own in features.items():
        novel = common.transformed(config, own)["novel"]
        for setting in wanted:
            drawn = common.draw_episodes(config, novel, setting, count=config.episodes.count)
            found = common.evaluate(config, simple_shot, novel[0], drawn, setting)
            mean, half = fewshot.mean_and_interval(found)
            place = "" if setting == first else f"_{setting.name}"
            if setting == first:
                accuracies[name] = found
            metrics |= {f"novel{place}{name}": mean, f"interval_novel{place}{name}": half}
    for name, one, other in (
        ("novel_over_pixels", "", "_pixels"),
        ("novel_over_untrained", "", "_untrained"),
        ("novel_untrained_over_pixels", "_untrained", "_pixels"),
    ):
        metrics |= common.difference(name, accuracies[one], accuracies[other])
    images = parts["base"].arrays()["image"][:6]
    figures.views(run.figure("views.png"), images, augmentation(config), jax.random.key(0))
    x, labels = features[""]["novel"][0], np.asarray(features[""]["novel"][1])
    few = np.flatnonzero(labels < 10)[:1500]
    xy, names = np.asarray(evaluation.embed_2d(x[few], method="tsne")), parts["novel"].class_names
    title = "t-SNE of the features of novel classes"
    figures.embedding(run.figure("embedding.png"), xy, labels[few], names, title)
    return metrics
