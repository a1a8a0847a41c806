"""Alignment and uniformity as a training loss: views agree, features spread over the sphere.

Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity
on the Hypersphere, arXiv:2005.10242, Section 4.2.
"""

from typing import Any

from experiments.common.claims import STRANGERS, features_are_learned
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import captions, pretrain, surroundings
from experiments.ranges import Range
from rml.contrastive import align_uniform
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.training import Loss, RunDirectory, Task, TrainState, gradient_task

CLAIMS = features_are_learned("Alignment and uniformity (arXiv:2005.10242)", stated="2026-11-26")
NULLS = STRANGERS
RANGES = {"train.batch_size": Range(2, whole=True)}  # uniformity is that of pairs of images
CAPTIONS = captions("Alignment and uniformity")
PICTURE = "embedding.png"


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = build_encoder(config), augmentation(config)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = augment.to_float(batch["image"])
        views = augment.flat_views(augment.views(state.step_key, images, pipeline, n=2))
        projections, changed = model.apply(
            state.training_variables(params), views, train=True, mutable=list(state.model_state)
        )
        value = align_uniform(*augment.split_views(projections), weight=config.loss.weight)
        return Loss(value, model_state=changed)

    return gradient_task(loss=loss, **surroundings(config, model))


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_encoder(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return pretrain(config, run, task(config), build_encoder(config), loss_label="loss")
