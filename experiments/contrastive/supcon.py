"""SupCon: all views of a class agree, views of different classes do not.

Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362, Section 3. `loss.form` is "out"
(eq. 2, the better one in the paper) or "in" (eq. 3).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from experiments.common.claims import STRANGERS, features_are_learned
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import captions, pretrain, surroundings
from experiments.common.selection import NEIGHBOURS
from experiments.ranges import Range
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.losses import sup_con
from rml.training import Loss, RunDirectory, Task, TrainState, gradient_task, over_batch

CLAIMS = features_are_learned("SupCon (arXiv:2004.11362)", stated="2026-11-24")
NULLS = STRANGERS
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = captions("SupCon")
PICTURE = "embedding.png"
SELECTION = NEIGHBOURS


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = build_encoder(config), augmentation(config)
    contrast = over_batch(partial(sup_con, **config.loss))

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = augment.to_float(batch["image"])
        views = augment.flat_views(augment.views(state.step_key, images, pipeline, n=2))
        projections, changed = model.apply(
            state.training_variables(params), views, train=True, mutable=list(state.model_state)
        )
        return Loss(contrast(projections, jnp.repeat(batch["label"], 2)), model_state=changed)

    return gradient_task(loss=loss, **surroundings(config, model, labelled=True))


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_encoder(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    model = build_encoder(config)
    return pretrain(config, run, task(config), model, loss_label="SupCon (nats)", labelled=True)
