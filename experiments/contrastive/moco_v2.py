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

from experiments.contrastive import common
from rml.contrastive.infonce import info_nce
from rml.contrastive.queue import enqueue, init_queue
from rml.data import augment
from rml.errors import UserError, unknown
from rml.ops.similarity import normalize
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = "MoCo v2 (arXiv:2003.04297): features are better; data and margin are this repository's"
CLAIMS = (
    Claim("kNN on the features is above kNN on raw pixels by 2 points",
          "knn_over_pixels", ">=", 0.02, SOURCE),
    Claim("kNN is above the untrained encoder's by 2 points",
          "knn_over_untrained", ">=", 0.02, SOURCE),
    Claim("A linear probe is above one on raw pixels by 5 points",
          "linear_probe_over_pixels", ">=", 0.05, SOURCE),
    Claim("A linear probe is above the untrained encoder's by 1 point",
          "linear_probe_over_untrained", ">=", 0.01, SOURCE),
)  # fmt: skip
CAPTIONS = common.captions("InfoNCE")
KEY_STATISTICS = ("shuffle", "running", "batch")


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = common.build_model(config), common.augmentation(config)
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
        keys, _ = common.apply_in_groups(model, variables, images[order], groups=groups)
        return keys[jnp.argsort(order)]

    def loss(params: Any, state: TrainState, batch: Any) -> Any:
        key_views, key_order = jax.random.split(state.step_key)
        images = augment.to_float(batch["image"])
        first, second = augment.views(key_views, images, pipeline, n=2)
        queries, model_state = common.apply_in_groups(
            model, {"params": params, **state.model_state}, first, groups=groups
        )
        keys = jax.lax.stop_gradient(
            normalize(encode_keys(state.extra["momentum"], second, key_order))
        )
        queue = state.extra["queue"]
        # Negatives are the queue's keys alone: those of the batch are, by label, left out.
        batch_label, queue_label = jnp.zeros(size, int), jnp.ones(len(queue.keys), int)
        value = info_nce(
            normalize(queries), keys, negatives=queue.keys, temperature=config.loss.temperature,
            labels=(batch_label, jnp.concatenate([batch_label, queue_label])),
        )  # fmt: skip
        return value, (model_state, {"queue": enqueue(queue, keys)})

    def queue(key: Any) -> dict[str, Any]:
        return {"queue": init_queue(key, size=config.queue.size, features=config.head.features)}

    return common.momentum_task(
        config, common.initializer(model, config),
        loss=loss, around=common.surroundings(config, model), extra=queue,
    )  # fmt: skip


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return common.pretrain(config, run, task(config), loss_label="InfoNCE (nats)")
