"""SimCLR: two augmented views of an image agree, views of different images do not.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
arXiv:2002.05709, Algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.contrastive import common
from rml import data
from rml.contrastive.ntxent import nt_xent
from rml.data import augment
from rml.training import (
    Claim,
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    fit,
    gradient_task,
    initial_state,
    make_mesh,
)

SOURCE = "SimCLR (arXiv:2002.05709), Section 3 and Table 8"
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
CAPTIONS = {
    "views.png": "Images and the views that the loss pulls together.",
    "loss.png": "NT-Xent against steps.",
    "knn.png": "Test accuracy of nearest neighbours on the features against steps.",
    "embedding.png": "Features of the test images in two dimensions.",
    "spectrum.png": "Singular values of the test images' features, trained and untrained.",
}


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = common.build_model(config), common.augmentation(config)
    judge = common.Judge(model, config)
    optimizer = build_optimizer(config.optimizer, steps=config.train.steps)

    def init_variables(key: Any) -> Any:
        return model.init(key, jnp.zeros((2, *config.data.image_shape)), train=True)

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        first, second = augment.views(key, augment.to_float(batch["image"]), pipeline, n=2)
        projections, model_state = model.apply(
            {"params": params, **model_state},
            jnp.concatenate([first, second]),
            train=True,
            mutable=list(model_state),
        )
        value = nt_xent(*jnp.split(projections, 2), temperature=config.loss.temperature)
        return value, ({}, model_state)

    def evaluate(state: TrainState) -> dict[str, float]:
        return {"knn": judge.knn(judge.features(variables(state)))}

    return gradient_task(
        init_variables=init_variables,
        loss=loss,
        optimizer=optimizer,
        batches=lambda: data.batches(
            judge.train, batch_size=config.train.batch_size, seed=config.seed
        ),
        evaluate=evaluate,
        batch_spec=common.batch_spec(config),
    )


def variables(state: TrainState) -> Any:
    """The variables with which a state's encoder is used."""
    return {"params": state.inference_params, **state.model_state}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    judge = common.Judge(common.build_model(config), config)
    images = np.stack([judge.train[i]["image"] for i in range(6)])
    problem = task(config)
    train = dict(config.train)
    train.pop("batch_size")
    state = fit(
        problem, run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", "eval/knn")), **train,
    )  # fmt: skip
    trained = judge.features(variables(state))
    untrained = judge.features(variables(initial_state(problem, seed=config.seed)))
    metrics = judge.compare(trained, untrained)
    common.draw_views(
        run.figure("views.png"), images, common.augmentation(config), jax.random.key(0)
    )
    common.draw_curves(
        run.figure, run.path, {"train/loss": "NT-Xent (nats)", "eval/knn": "kNN accuracy"}
    )
    judge.draw(run.figure, trained, untrained)
    return metrics
