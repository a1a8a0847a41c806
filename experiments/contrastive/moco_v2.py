"""MoCo v2: an image's view finds its key among a queue of keys from a slowly moving encoder.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning, arXiv:1911.05722,
Algorithm 1; Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv:2003.04297.

BatchNorm would tell queries which key comes from their own batch: the positive shares the batch's
statistics, the queue's negatives do not. The paper shuffles images between devices, each of which
normalises its own (arXiv:1911.05722, Section 3.3). One program over any number of devices has no
such borders, so `batch_norm.groups` draws them: queries and keys are normalised in so many groups,
and with `batch_norm.key_statistics` "shuffle" the keys' groups hold other images than the queries'.
With "running" the momentum encoder uses the moving average of the statistics instead, which depends
on no batch (Cai et al., EMAN, arXiv:2101.08482); with "batch" keys keep the queries' groups, and
the signal leaks.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.claims import STRANGERS, features_are_learned
from experiments.common.encoders import build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import captions, momentum, pretrain, surroundings
from experiments.common.selection import NEIGHBOURS
from rml.contrastive import apply_in_groups
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.errors import UserError, unknown
from rml.losses import info_nce_with_queue
from rml.ops.similarity import normalize
from rml.training import (
    Loss,
    RunDirectory,
    Task,
    TrainState,
    enqueue,
    init_queue,
    momentum_task,
)

CLAIMS = features_are_learned("MoCo v2 (arXiv:2003.04297)", stated="2026-11-24")
NULLS = STRANGERS
CAPTIONS = captions("InfoNCE")
PICTURE = "embedding.png"
SELECTION = NEIGHBOURS
KEY_STATISTICS = ("shuffle", "running", "batch")


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = build_encoder(config), augmentation(config)
    groups, statistics, size = (
        config.batch_norm.groups,
        config.batch_norm.key_statistics,
        config.train.batch_size,
    )
    if statistics not in KEY_STATISTICS:
        raise unknown("batch_norm.key_statistics", statistics, KEY_STATISTICS)
    if groups < 1 or size % groups:
        raise UserError(f"batch_norm.groups is {groups}, expected to divide the batch of {size}")

    def encode_keys(variables: Any, images: Any, key: Any) -> Any:
        if statistics == "running":
            return model.apply(variables, images, train=False)
        order = jnp.arange(size)
        if statistics == "shuffle":
            order = jax.random.permutation(key, order)
        keys, _ = apply_in_groups(model, variables, images[order], groups=groups)
        return keys[jnp.argsort(order)]

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        key_views, key_order = jax.random.split(state.step_key)
        images = augment.to_float(batch["image"])
        first, second = augment.views(key_views, images, pipeline, n=2)
        queries, changed = apply_in_groups(
            model, state.training_variables(params), first, groups=groups
        )
        keys = jax.lax.stop_gradient(
            normalize(encode_keys(state.extra["momentum"], second, key_order))
        )
        queue = state.extra["queue"]
        value = info_nce_with_queue(
            normalize(queries), keys, queue.keys, temperature=config.loss.temperature
        )
        return Loss(value, model_state=changed, extra={"queue": enqueue(queue, keys)})

    def queue(key: Any) -> dict[str, Any]:
        return {"queue": init_queue(key, size=config.queue.size, features=config.head.features)}

    return momentum_task(
        loss=loss, momentum=momentum(config), averaged=("encoder", "head"), extra=queue,
        **surroundings(config, model),
    )  # fmt: skip


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_encoder(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return pretrain(config, run, task(config), build_encoder(config), loss_label="InfoNCE (nats)")
