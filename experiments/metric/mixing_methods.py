"""Losses of pairs on a batch and on mixtures of its images, feature maps or embeddings.

A method is a loss of `FORMS` and a mode: "none" is the loss alone, "input" mixes images, "feature"
what a layer of the encoder takes, "embedding" the last. `targets` of a method are "mixed", as the
share of a mixture says, or "hard", 0 or 1, whichever is nearer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.common.encoders import initializer
from experiments.common.images import augmentation, batch_spec
from experiments.metric.methods import ClassVectors, Evaluate, Open, check_batch, with_class_vectors
from rml import data, losses
from rml.data import augment
from rml.errors import UserError, unknown
from rml.losses.pair_loss import class_pair_loss
from rml.metric import (
    Mixtures,
    draw_mixtures,
    mix,
    mixed_similarities,
    similarities_of_mixed,
)
from rml.ops import cosine_similarity
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

FORMS: dict[str, Callable[[Any], losses.PairForm]] = {
    "contrastive": lambda options: losses.contrastive_form(options.margin),
    "multi_similarity": lambda options: losses.multi_similarity_form(
        options.beta, options.gamma, options.margin
    ),
    "proxy_anchor": lambda options: losses.proxy_anchor_form(options.scale, options.margin),
}
"""The losses, by name, of a method's options."""
MODES = ("none", "input", "feature", "embedding")
TARGETS = ("mixed", "hard")


def check_methods(config: Any) -> None:
    """Raises `UserError` unless every method's loss, mode, targets and kinds are known."""
    check_batch(config)
    for name, options in config.methods.items():
        for what, known in (("loss", FORMS), ("mode", MODES), ("targets", TARGETS)):
            if options[what] not in known:
                raise unknown(f"methods.{name}.{what}", options[what], tuple(known))
        if options.loss == "proxy_anchor" and options.mode == "input":
            raise UserError(
                f"methods.{name}.mode is 'input' with proxies, expected 'feature' or 'embedding': "
                "an image is mixed with the negatives of an image"
            )


def task(config: Any, method: str, parts: Open, evaluate: Evaluate) -> Task:
    """The training problem of a method.

    Args:
      config: The run's config.
      method: Name of the method in `config.methods`.
      parts: Opens the images of a part, of which "base" is trained on.
      evaluate: Judges a state during training.

    Returns:
      The task.

    Raises:
      UserError: The method is unknown, or a batch is not `batch.classes` times `batch.examples`.
    """
    if method not in config.methods:
        raise unknown("method", method, tuple(config.methods))
    check_batch(config)
    model, options, batch = with_class_vectors(config), config.methods[method], config.batch
    pipeline = augmentation(config)

    def batches(part: int = 0, count: int = 1) -> grain.IterDataset:
        return data.class_batches(
            parts("base"), classes=batch.classes, examples=batch.examples, seed=config.seed,
            part=part, parts=count,
        )  # fmt: skip

    def loss(params: Any, state: TrainState, given: Mapping[str, Array]) -> Loss:
        images = pipeline(state.step_key, augment.to_float(given["image"]))
        forward = Forward(
            model, state.training_variables(params), tuple(state.model_state), config.mixing.layer
        )
        key = jax.random.fold_in(state.step_key, 1)
        value = objective(config, options, key, forward, images, given["label"])
        return Loss(value, model_state=forward.changed)

    return gradient_task(
        loss=loss,
        init_variables=initializer(model, config),
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=batches,
        evaluate=evaluate,
        batch_spec=batch_spec(config),
    )


class Forward:
    """An encoder applied to a batch, then to mixtures of what one of its layers took.

    Attributes:
      changed: What the batch changed, such as means of a normalisation; mixtures change nothing.
    """

    def __init__(self, model: ClassVectors, variables: Any, mutable: tuple[str, ...], layer: str):
        self.model, self.variables, self.mutable, self.layer = model, variables, mutable, layer
        self.changed: Any = {}
        self.taken: Array | None = None

    def _apply(self, images: Array) -> tuple[Any, Any]:
        return self.model.apply(self.variables, images, train=True, mutable=list(self.mutable))

    def _is_layer(self, context: nn.module.InterceptorContext) -> bool:
        return context.method_name == "__call__" and context.module.name == self.layer

    def batch(self, images: Array) -> Any:
        """Encodes the batch."""

        def keep(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if self._is_layer(context):
                self.taken = args[0]
            return function(*args, **kwargs)

        with nn.intercept_methods(keep):
            out, self.changed = self._apply(images)
        return out

    def images(self, mixed: Array) -> Array:
        """Embeds other images."""
        return self._apply(mixed)[0].embeddings

    def features(self, mixtures: Mixtures, shape: tuple[int, ...]) -> Array:
        """Embeds mixtures of what the layer took of the batch, of images of a shape.

        Raises:
          UserError: The encoder has no such layer.
        """
        if self.taken is None:
            raise UserError(f"mixing.layer is {self.layer!r}, expected a layer of the encoder")
        mixed = flat(mix(self.taken, mixtures))

        def replace(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if self._is_layer(context):
                args = (mixed, *args[1:])
            return function(*args, **kwargs)

        # What layers below make of blank images is not used, so that the compiler leaves it out.
        with nn.intercept_methods(replace):
            return self.images(jnp.zeros((len(mixed), *shape)))


def flat(mixed: Array) -> Array:
    """Mixtures of all anchors in one axis."""
    return mixed.reshape(-1, *mixed.shape[2:])


def objective(
    config: Any, options: Any, key: Array, forward: Forward, images: Array, labels: Array
) -> Array:
    """The loss of a batch and, where the mode mixes, that of its mixtures."""
    form, mode, out = FORMS[options.loss](options), options.mode, forward.batch(images)
    rows, anchors, classes, proxies = out.embeddings, out.embeddings, None, None
    if form.proxies:
        anchors = proxies = out.prototypes
        classes = jnp.arange(len(proxies))
    value = class_pair_loss(rows, labels, form=form, proxies=proxies)
    if mode == "none":
        return value
    count = config.mixing[mode]
    # The most similar negatives are mixed where each costs a pass of the encoder.
    near = jax.lax.stop_gradient(cosine_similarity(rows, rows)) if mode == "input" else None
    mixtures = draw_mixtures(
        key, labels, per_anchor=count, alpha=config.mixing.alpha, anchor_labels=classes,
        kinds=options.get("kinds"),
        similarities=near,
    )  # fmt: skip
    if mode == "embedding":
        mixed = mixed_similarities(anchors, rows, mixtures)
    else:
        embedded = (
            forward.images(flat(mix(images, mixtures)))
            if mode == "input"
            else forward.features(mixtures, images.shape[1:])
        )
        mixed = similarities_of_mixed(anchors, embedded.reshape(len(anchors), count, -1))
    targets = mixtures.targets
    if options.targets == "hard":
        targets = (targets >= 0.5).astype(targets.dtype)
    mixed_loss = losses.pair_loss(mixed, targets, form=form, where=mixtures.where)
    return value + config.mixing.weight * mixed_loss
