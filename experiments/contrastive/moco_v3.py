"""MoCo v3: each view predicts the other's key from a momentum encoder, among the batch's keys.

Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, arXiv:2104.02057,
Algorithm 1. There is no queue; a prediction head follows the trained encoder's projection, and
`model.freeze_patches` keeps a ViT's random patch projection (Section 4.2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.contrastive import common
from rml.contrastive.infonce import info_nce
from rml.data import augment
from rml.ops.similarity import normalize
from rml.training import Claim, RunDirectory, Task, TrainState, over_batch

SOURCE = "MoCo v3 (arXiv:2104.02057): features are better; data and margin are this repository's"
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
CAPTIONS = common.captions("The symmetrised InfoNCE")


def task(config: Any) -> Task:
    """The training problem of a config."""
    model = common.build_model(config)
    pipelines = common.augmentation(config), common.augmentation(config, "augment_second")
    temperature = config.loss.temperature

    def contrast(queries: Any, keys: Any) -> Any:
        # 2τ keeps the size of the gradient as it would be for a squared error at any temperature.
        return (
            2 * temperature * over_batch(partial(info_nce, temperature=temperature))(queries, keys)
        )

    def loss(params: Any, state: TrainState, batch: Any) -> Any:
        images = augment.to_float(batch["image"])
        draws = zip(pipelines, jax.random.split(state.step_key), strict=True)
        views = jnp.stack([pipeline(key, images) for pipeline, key in draws])
        queries, model_state = common.apply_to_views(
            model, {"params": params, **state.model_state}, views
        )
        keys, _ = common.apply_to_views(model, state.extra["momentum"], views, method="project")
        q1, q2 = normalize(queries)
        k1, k2 = jax.lax.stop_gradient(normalize(keys))
        return contrast(q1, k2) + contrast(q2, k1), (model_state, {})

    return common.momentum_task(
        config, common.initializer(model, config),
        loss=loss, around=common.surroundings(config, model),
    )  # fmt: skip


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return common.pretrain(config, run, task(config), loss_label="symmetrised InfoNCE · 2τ")
