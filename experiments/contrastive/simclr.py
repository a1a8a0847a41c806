"""SimCLR: two augmented views of an image agree, views of different images do not.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
arXiv:2002.05709, Algorithm 1.
"""

from functools import partial
from typing import Any

from experiments.contrastive import common
from rml.contrastive.ntxent import nt_xent
from rml.data import augment
from rml.training import Claim, RunDirectory, Task, build_optimizer, gradient_task, over_batch

SOURCE = "SimCLR (arXiv:2002.05709): features are better; data and margin are this repository's"
TARGET = "target of this repository on this data, not the paper's"
CLAIMS = (
    Claim("kNN on the features is right on 96.5% of the test images", "knn", ">=", 0.965, TARGET),
    Claim("A linear probe is right on 97% of the test images", "linear_probe", ">=", 0.97, TARGET),
    Claim("kNN on the features is above kNN on raw pixels by 2 points",
          "knn_over_pixels", ">=", 0.02, SOURCE),
    Claim("kNN is above the untrained encoder's by 2 points",
          "knn_over_untrained", ">=", 0.02, SOURCE),
    Claim("A linear probe is above one on raw pixels by 5 points",
          "linear_probe_over_pixels", ">=", 0.05, SOURCE),
    Claim("A linear probe is above the untrained encoder's by 1 point",
          "linear_probe_over_untrained", ">=", 0.01, SOURCE),
)  # fmt: skip
CAPTIONS = common.captions("NT-Xent")


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
        contrast = partial(nt_xent, temperature=config.loss.temperature)
        value = over_batch(contrast)(*augment.split_views(projections))
        return value, ({}, model_state)

    return gradient_task(
        init_variables=common.initializer(model, config),
        loss=loss,
        optimizer=build_optimizer(config.optimizer, steps=config.train.steps),
        **common.surroundings(config, model),
    )


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    return common.pretrain(config, run, task(config), loss_label="NT-Xent (nats)")
