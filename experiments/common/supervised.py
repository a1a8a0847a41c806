"""Classifiers of images: cross-entropy with smoothed labels, judged on held-out images."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from experiments.common.encoders import initializer
from experiments.common.evaluators import encode
from experiments.common.images import augmentation, batch_spec, training_batches
from rml import data
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.losses import smoothed_cross_entropy
from rml.training import (
    Loss,
    Optimizer,
    Task,
    TrainState,
    build_optimizer,
    gradient_task,
    make_mesh,
)

DROPOUT = 0xD809
"""What the key of dropout is folded with."""
Source = Callable[[], data.Source]
"""Opens images when they are first needed: a task is made without opening data."""


def classification(
    config: Any,
    model: Any,
    *,
    train: Source,
    held_out: Source,
    penalty: Callable[[Any, Any], Array] | None = None,
    dropout: bool = False,
    optimizer: Optimizer | None = None,
) -> Task:
    """Makes the problem of telling classes apart.

    Args:
      config: The run's config, of which `augment`, `loss.smoothing`, `optimizer`, `train`, the
        images' shape and what `right` reads are read.
      model: A module that gives logits of float images.
      train: Opens the images that are trained on.
      held_out: Opens those that the accuracy is measured on during training.
      penalty: What is added to the loss, from what the model leaves under "intermediates" and its
        parameters.
      dropout: Whether the model gets an rng of this name.
      optimizer: Another optimiser than the one that the config names.

    Returns:
      The task; metrics of training are the accuracy on the batch and, where there is one, the
      penalty.
    """
    pipeline = augmentation(config)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = pipeline(state.step_key, one_crop(augment.to_float(batch["image"])))
        kept = [*state.model_state, *(["intermediates"] if penalty else [])]
        rngs = {"dropout": jax.random.fold_in(state.step_key, DROPOUT)} if dropout else {}
        logits, changed = model.apply(
            state.training_variables(params), images, train=True, mutable=kept, rngs=rngs
        )
        each = smoothed_cross_entropy(logits, batch["label"], smoothing=config.loss.smoothing)
        metrics = {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])}
        value = jnp.mean(each)
        if penalty:
            changed, left = {k: v for k, v in changed.items() if k in state.model_state}, changed
            metrics["penalty"] = penalty(left["intermediates"], params)
            value += metrics["penalty"]
        return Loss(value, metrics, model_state=changed)

    def evaluate(state: TrainState) -> dict[str, float]:
        found = right(config, model, state.variables, held_out())
        return {"accuracy": float(jnp.mean(found))}

    return gradient_task(
        loss=loss,
        init_variables=initializer(model, config),
        optimizer=optimizer or build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, count=1: training_batches(config, train(), part, count),
        evaluate=evaluate,
        batch_spec=batch_spec(config),
    )


def one_crop(images: Float[Array, "b *views h w c"]) -> Float[Array, "b h w c"]:
    """Images of a batch that holds one crop of each, see `experiments.common.images.host_crops`."""
    return images.reshape(len(images), *images.shape[-3:])


def right(config: Any, model: Any, variables: Any, source: data.Source) -> Bool[Array, " n"]:
    """Which images of a source a classifier names rightly.

    Args:
      config: The run's config, of which `mesh` and `evaluation` or `features` are read.
      model: The classifier.
      variables: Its variables.
      source: Images with labels.
    """
    logits, labels = logits_of(config, model, variables, source)
    return jnp.argmax(logits, axis=-1) == labels


def logits_of(
    config: Any, model: Any, variables: Any, source: data.Source
) -> tuple[Float[Array, "n c"], Int[Array, " n"]]:
    """Logits of all images of a source, and their labels; arguments as in `right`."""
    size = (config.get("evaluation") or config.features).batch_size
    apply = ImageEmbedder(_predict(model), variables, size, make_mesh(config.mesh))
    return encode(apply, source, batch_size=size)


@cache
def _predict(model: Any) -> Callable[[Any, Any], Array]:
    """Logits of images; one function for each classifier, so that it is compiled once."""

    def predict(variables: Any, images: Any) -> Array:
        return model.apply(variables, augment.to_float(images), train=False)

    return predict
