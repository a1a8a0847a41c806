"""MoCo v3: each view predicts the other's key from a momentum encoder, among the batch's keys.

Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, arXiv:2104.02057,
Algorithm 1. There is no queue; a prediction head follows the trained encoder's projection, and
`model.freeze_patches` keeps a ViT's random patch projection (Section 4.2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.claims import STRANGERS, features_are_learned
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import captions, momentum, pretrain, surroundings
from experiments.common.selection import NEIGHBOURS
from experiments.ranges import Range
from rml.contrastive import apply_to_views
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.losses import info_nce
from rml.ops.similarity import normalize
from rml.training import Loss, RunDirectory, Task, TrainState, momentum_task, over_batch

CLAIMS = features_are_learned("MoCo v3 (arXiv:2104.02057)", stated="2026-11-24")
NULLS = STRANGERS
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = captions("The symmetrised InfoNCE")
PICTURE = "embedding.png"
SELECTION = NEIGHBOURS


def task(config: Any) -> Task:
    """The training problem of a config."""
    model = build_encoder(config)
    pipelines = augmentation(config), augmentation(config, "augment_second")
    temperature = config.loss.temperature

    def contrast(queries: Any, keys: Any) -> Any:
        # 2τ keeps the size of the gradient as it would be for a squared error at any temperature.
        return (
            2 * temperature * over_batch(partial(info_nce, temperature=temperature))(queries, keys)
        )

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = augment.to_float(batch["image"])
        crops = (images, images) if images.ndim == 4 else jnp.moveaxis(images, 1, 0)
        draws = zip(pipelines, jax.random.split(state.step_key), crops, strict=True)
        views = jnp.stack([pipeline(key, view) for pipeline, key, view in draws])
        queries, changed = apply_to_views(model, state.training_variables(params), views)
        keys, _ = apply_to_views(model, state.extra["momentum"], views, method="project")
        q1, q2 = normalize(queries)
        k1, k2 = jax.lax.stop_gradient(normalize(keys))
        return Loss(contrast(q1, k2) + contrast(q2, k1), model_state=changed)

    return momentum_task(
        loss=loss, momentum=momentum(config), averaged=("encoder", "head"),
        **surroundings(config, model),
    )  # fmt: skip


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_encoder(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    label = "symmetrised InfoNCE · 2τ"
    return pretrain(config, run, task(config), build_encoder(config), loss_label=label)
