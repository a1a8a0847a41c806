"""Base training: a classifier of the base classes, whose encoder novel classes are told apart with.

Cross-entropy with smoothed labels on augmented images, no episodes: Ziko et al., Transductive
Few-Shot Learning: Clustering is All You Need?, arXiv:2106.09516 ("standard training on the base
classes"); labels are smoothed by 0.1 as in its public code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments import figures
from experiments.contrastive import common as contrastive
from experiments.fewshot.common import Parts, num_base
from experiments.fewshot.episodes import Setting, check_classes, draw_episodes, measure, transformed
from experiments.fewshot.features import Features, encode, pixels
from rml import data, evaluation, models
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

SOURCE = "target of this repository on this data, not a paper's"
CLAIMS = (
    Claim("SimpleShot at 1 shot on novel classes is above that on raw pixels by 5 points",
          "novel_over_pixels", ">=", 0.05, SOURCE),
    Claim("SimpleShot at 1 shot on novel classes is above the untrained encoder's by 5 points",
          "novel_over_untrained", ">=", 0.05, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "views.png": "Training images and their augmentations.",
    "loss.png": "Cross-entropy with smoothed labels against steps.",
    "accuracy.png": "Accuracy on held-out images of the base classes against steps.",
    "embedding.png": "Features of images of novel classes in two dimensions.",
}


def build_model(config: Any) -> contrastive.ProjectedEncoder:
    """The encoder that a config names, with a classifier of its base classes."""
    dtype = jnp.dtype(config.dtype)
    return contrastive.ProjectedEncoder(
        models.build(**config.model, dtype=dtype),
        models.Classifier(num_base(config), dtype=dtype, **config.head),
    )


def smoothed_cross_entropy(
    logits: Float[Array, "b c"], labels: Int[Array, " b"], *, smoothing: float
) -> Float[Array, ""]:
    """Mean cross-entropy with targets of which `smoothing` is spread evenly over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits.astype(jnp.float32), targets))


def task(config: Any) -> Task:
    """The training problem of a config."""
    model, pipeline = build_model(config), contrastive.augmentation(config)
    parts = Parts(config)

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        images = pipeline(key, augment.to_float(batch["image"]))
        logits, model_state = model.apply(
            {"params": params, **model_state}, images, train=True, mutable=list(model_state)
        )
        value = smoothed_cross_entropy(logits, batch["label"], smoothing=config.loss.smoothing)
        right = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        return value, ({"accuracy": right}, model_state)

    predict = jax.jit(
        lambda variables, images: model.apply(variables, augment.to_float(images), train=False)
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        logits, labels = encode(
            lambda images: predict(contrastive.variables(state), images),
            parts["held_out"],
            batch_size=config.features.batch_size,
        )
        return {"accuracy": float(jnp.mean(jnp.argmax(logits, axis=-1) == labels))}

    return gradient_task(
        init_variables=contrastive.initializer(model, config),
        loss=loss,
        optimizer=build_optimizer(config.optimizer, steps=config.train.steps),
        batches=lambda part=0, count=1: data.batches(
            parts["base"],
            batch_size=config.train.batch_size,
            seed=config.seed,
            part=part,
            parts=count,
        ),
        evaluate=evaluate,
        batch_spec=contrastive.batch_spec(config),
    )


def train(config: Any, run: RunDirectory) -> TrainState:
    """Trains as the config says, in the run directory, and draws the course."""
    options = dict(config.train)
    options.pop("batch_size")
    state = fit(
        task(config), run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", "eval/accuracy")), **options,
    )  # fmt: skip
    contrastive.draw_curves(
        run.figure,
        run.path,
        {"train/loss": "cross-entropy (nats)", "eval/accuracy": "accuracy on held-out images"},
    )
    return state


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, compares trained features with untrained ones and pixels on episodes, draws."""
    parts, problem = Parts(config), task(config)
    setting = Setting(config.episodes.ways[0], 1)
    check_classes({"novel": parts["novel"].arrays()["label"]}, config, [setting])
    state = train(config, run)
    untrained = initial_state(problem, seed=config.seed)
    trained = features(config, parts, state)
    measured = {
        "novel": trained,
        "novel_pixels": pixels(parts, batch_size=config.features.batch_size),
        "novel_untrained": features(config, parts, untrained),
    }
    metrics = {"accuracy": problem.evaluate(state)["accuracy"]}
    for name, values in measured.items():
        novel = transformed(values, config.features.transform).novel
        drawn = draw_episodes(novel, config, setting, count=config.episodes.count)
        metrics[name], metrics[f"interval_{name}"] = measure(
            "simple_shot", {}, novel[0], drawn, config, setting
        )
    for other in ("pixels", "untrained"):
        metrics[f"novel_over_{other}"] = metrics["novel"] - metrics[f"novel_{other}"]
    draw(config, run, parts, trained)
    return metrics


def features(config: Any, parts: Parts, state: TrainState) -> Features:
    """Features of every part under a state."""
    model = build_model(config)
    apply = jax.jit(
        lambda variables, images: model.apply(
            variables, augment.to_float(images), method=model.features
        )
    )
    variables = contrastive.variables(state)

    def encoder(images: Any) -> Array:
        return apply(variables, images)

    return Features.of(parts, encoder, batch_size=config.features.batch_size)


def draw(config: Any, run: RunDirectory, parts: Parts, trained: Features) -> None:
    """Figures of the augmentation and of the novel classes, ten at most."""
    images = np.stack([parts["base"][i]["image"] for i in range(6)])
    contrastive.draw_views(
        run.figure("views.png"), images, contrastive.augmentation(config), jax.random.key(0)
    )
    x, labels = trained.novel[0], np.asarray(trained.novel[1])
    few = np.flatnonzero(labels < 10)[:1500]
    figures.embedding(
        run.figure("embedding.png"),
        np.asarray(evaluation.embed_2d(x[few], method="tsne")),
        labels[few],
        parts["novel"].class_names,
        title="t-SNE of the features of novel classes",
    )
