"""The methods compared: a loss each, over the same encoder, optimiser, and size of a batch.

`normalized_softmax`, `learned_scale`, `cosface` and `arcface` have class vectors on the sphere,
`softmax` has those of a linear classifier; their batches are shuffled. The others compare the
examples of a batch, which has so many examples of so many classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from experiments.common.class_parts import num_classes
from experiments.common.encoders import initializer
from experiments.common.images import augmentation, batch_spec, training_batches
from rml import data, losses, models
from rml.data import augment
from rml.errors import UserError, unknown
from rml.metric import unit_rows
from rml.ops import normalize
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

Open = Callable[[str], data.Source]
"""Opens a part of a config's images when it is first needed."""
Evaluate = Callable[[TrainState], dict[str, float]]


class Outputs(NamedTuple):
    """What losses see of a batch.

    Attributes:
      embeddings: Embedding of each image.
      prototypes: Class vectors.
      bias: Bias of each class, of a linear classifier.
      scale: Learned scale.
    """

    embeddings: Any
    prototypes: Any
    bias: Any
    scale: Any


class ClassVectors(nn.Module):
    """An encoder with a linear embedding, and vectors of the classes that it is trained on.

    Attributes:
      encoder: Module of images.
      head: Module from its features to embeddings.
      classes: Number of classes.
      scale: Where a learned scale begins.
    """

    encoder: nn.Module
    head: nn.Module
    classes: int
    scale: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Outputs:
        """Embeds images; of class vectors every loss takes what it needs."""
        embeddings = self.head(self.encoder(images, train=train), train=train)
        vectors = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(in_axis=-1, out_axis=-2), ("classes", "embed")
        )
        return Outputs(
            embeddings,
            self.param("prototypes", vectors, (self.classes, embeddings.shape[-1])),
            self.param("bias", nn.initializers.zeros, (self.classes,)),
            jnp.exp(self.param("log_scale", lambda _: jnp.log(jnp.asarray(self.scale)))),
        )

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Embeds images, without normalising."""
        return self.head(self.encoder(images, train=False), train=False)


Objective = Callable[[Any, Outputs, Array, int], Array]
"""`(options, outputs, labels, examples of a class side by side) -> loss`."""


def normalized_softmax(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """Cosines to class vectors, of a fixed scale; a margin where options have one."""
    del examples
    return losses.normalized_softmax(
        out.embeddings, labels, out.prototypes, scale=options.scale,
        margin=options.get("margin", 0.0), margin_kind=options.get("margin_kind", "none"),
    )  # fmt: skip


def learned_scale(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """Cosines to class vectors, of a scale that is learned too."""
    del options, examples
    return losses.normalized_softmax(out.embeddings, labels, out.prototypes, scale=out.scale)


def softmax(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """Logits of a linear classifier."""
    del examples
    logits = out.embeddings @ out.prototypes.T + out.bias
    return jnp.mean(losses.smoothed_cross_entropy(logits, labels, smoothing=options.smoothing))


def triplet(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """Triplets on the sphere, mined in the batch."""
    del examples
    unit = normalize(out.embeddings)
    return losses.triplet_loss(unit, labels, margin=options.margin, mining=options.mining)


def contrastive(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """All pairs of the batch, on the sphere."""
    del examples
    unit = normalize(out.embeddings)
    return losses.contrastive_pairs(unit, labels, margin=options.margin)


def prototypical(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """An episode: the first half of each class's examples is the support of the other half."""
    classes = len(labels) // examples
    rows = out.embeddings.reshape(classes, examples, -1)
    half = examples // 2
    support, query = rows[:, :half], rows[:, half:]

    def flat(part: Array) -> tuple[Array, Array]:
        numbers = jnp.repeat(jnp.arange(classes), part.shape[1])
        return part.reshape(len(numbers), -1), numbers

    return losses.prototypical_loss(
        *flat(support), *flat(query), num_classes=classes, temperature=options.temperature
    )


def supcon(options: Any, out: Outputs, labels: Array, examples: int) -> Array:
    """Supervised contrastive learning among the batch."""
    del examples
    return losses.sup_con(out.embeddings, labels, temperature=options.temperature)


METHODS: dict[str, Objective] = {
    "normalized_softmax": normalized_softmax, "learned_scale": learned_scale,
    "cosface": normalized_softmax, "arcface": normalized_softmax, "softmax": softmax,
    "triplet": triplet, "triplet_all": triplet, "contrastive": contrastive,
    "prototypical": prototypical, "supcon": supcon,
}  # fmt: skip
VECTORS = ("normalized_softmax", "learned_scale", "cosface", "arcface", "softmax")
"""Methods with trained class vectors."""
TITLES = {
    "normalized_softmax": "normalised softmax", "learned_scale": "learned scale",
    "cosface": "CosFace", "arcface": "ArcFace", "softmax": "softmax",
    "triplet": "triplet, semi-hard", "triplet_all": "triplet, all", "contrastive": "contrastive",
    "prototypical": "prototypical", "supcon": "SupCon",
}  # fmt: skip


def build_model(config: Any, method: str) -> ClassVectors:
    """Builds the encoder of a config with the class vectors that methods train.

    Raises:
      UserError: The method is unknown.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return with_class_vectors(config, config.methods[method].get("scale", 1.0))


def with_class_vectors(config: Any, scale: float = 1.0) -> ClassVectors:
    """Builds the encoder of a config with vectors of the base classes, and a scale."""
    dtype = jnp.dtype(config.dtype)
    return ClassVectors(
        models.build(**config.model, dtype=dtype),
        models.ProjectionHead(features=config.head.features, layers=1, dtype=dtype),
        num_classes(config, "base"),
        scale,
    )


def task(config: Any, method: str, parts: Open, evaluate: Evaluate) -> Task:
    """The training problem of a method.

    Args:
      config: The run's config.
      method: One of `METHODS`.
      parts: Opens the images of a part, of which "base" is trained on.
      evaluate: Judges a state during training.

    Returns:
      The task.

    Raises:
      UserError: The method is unknown, or a batch is not `batch.classes` times `batch.examples`.
    """
    model, options, batch = build_model(config, method), config.methods[method], config.batch
    check_batch(config)
    pipeline = augmentation(config)
    optimizer = build_optimizer(dict(config.optimizer), steps=config.train.steps)
    if options.get("project", False):
        transform = optax.chain(optimizer.transform, unit_rows())
        optimizer = optimizer._replace(transform=transform)

    def batches(part: int = 0, count: int = 1) -> grain.IterDataset:
        if method in VECTORS:
            return training_batches(config, parts("base"), part, count)
        return data.class_batches(
            parts("base"), classes=batch.classes, examples=batch.examples, seed=config.seed,
            part=part, parts=count,
        )  # fmt: skip

    def loss(params: Any, state: TrainState, given: Any) -> Loss:
        images = pipeline(state.step_key, augment.to_float(given["image"]))
        out, changed = model.apply(
            state.training_variables(params), images, train=True, mutable=list(state.model_state)
        )
        value = METHODS[method](options, out, given["label"], batch.examples)
        return Loss(value, model_state=changed)

    return gradient_task(
        loss=loss,
        init_variables=initializer(model, config),
        optimizer=optimizer,
        batches=batches,
        evaluate=evaluate,
        batch_spec=batch_spec(config),
    )


def check_batch(config: Any) -> None:
    """Raises `UserError` unless a batch has whole classes, each with two halves."""
    classes, examples, size = config.batch.classes, config.batch.examples, config.train.batch_size
    if classes * examples != size:
        raise UserError(
            f"train.batch_size is {size}, expected batch.classes times batch.examples, "
            f"{classes} x {examples} = {classes * examples}"
        )
    if examples < 2 or classes < 2:
        raise UserError(
            f"batch.classes is {classes} and batch.examples {examples}, expected at least 2 each: "
            "losses of pairs need one of a class and one of two"
        )
