"""SimCLR: two augmented views of an image agree, views of different images do not.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
arXiv:2002.05709, Algorithm 1.
"""

from functools import partial
from typing import Any

from experiments.common.claims import STRANGERS, features_are_learned
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import captions, pretrain, surroundings
from experiments.common.selection import NEIGHBOURS
from experiments.ranges import Range
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.losses import nt_xent
from rml.training import Loss, RunDirectory, Task, TrainState, gradient_task, over_batch

CLAIMS = features_are_learned("SimCLR (arXiv:2002.05709)", stated="2026-11-24")
NULLS = STRANGERS
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = captions("NT-Xent")
PICTURE = "embedding.png"
SELECTION = NEIGHBOURS


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = build_encoder(config), augmentation(config)
    contrast = over_batch(partial(nt_xent, temperature=config.loss.temperature))

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = augment.to_float(batch["image"])
        views = augment.flat_views(augment.views(state.step_key, images, pipeline, n=2))
        projections, changed = model.apply(
            state.training_variables(params), views, train=True, mutable=list(state.model_state)
        )
        return Loss(contrast(*augment.split_views(projections)), model_state=changed)

    return gradient_task(loss=loss, **surroundings(config, model))


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_encoder(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return pretrain(config, run, task(config), build_encoder(config), loss_label="NT-Xent (nats)")
