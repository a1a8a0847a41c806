"""SupCon: all views of a class agree, views of different classes do not.

Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362, Section 3. `loss.form` is "out"
(eq. 2, the better one in the paper) or "in" (eq. 3).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from experiments.contrastive import common
from rml.contrastive.supcon import sup_con
from rml.data import augment
from rml.training import Claim, RunDirectory, Task, build_optimizer, gradient_task, over_batch

SOURCE = "SupCon (arXiv:2004.11362): features are better; data and margin are this repository's"
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
CAPTIONS = common.captions("SupCon")


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = common.build_model(config), common.augmentation(config)

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        views = augment.views(key, augment.to_float(batch["image"]), pipeline, n=2)
        projections, model_state = model.apply(
            {"params": params, **model_state},
            augment.flat_views(views),
            train=True,
            mutable=list(model_state),
        )
        labels = jnp.repeat(batch["label"], 2)
        contrast = partial(sup_con, **config.loss)
        return over_batch(contrast)(projections, labels), ({}, model_state)

    return gradient_task(
        init_variables=common.initializer(model, config),
        loss=loss,
        optimizer=build_optimizer(config.optimizer, steps=config.train.steps),
        **common.surroundings(config, model),
    )


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return common.pretrain(config, run, task(config), loss_label="SupCon (nats)")
