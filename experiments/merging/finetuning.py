"""Pretraining of a base, and fine-tuning of several models from it as one program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from experiments.common.encoders import build_encoder
from experiments.common.images import augmentation
from experiments.common.many import many, on_one_device, replaced
from experiments.common.pretraining import train
from experiments.common.supervised import classification
from experiments.merging.networks import network, pretrained_texts, reads_texts, seen, spec
from experiments.merging.tasks import Images, background
from rml import data, models
from rml.ops import normalize
from rml.training import Loss, RunDirectory, Task, TrainState, build_optimizer, gradient_task

ABSENT = -1e9
"""Logit of a class that a task lacks: finite, so that it is as good as impossible everywhere."""
ROWS = 250
"""Images or texts that are read at a time."""


def logits(
    features: Float[Array, "b d"], head: Float[Array, "*b c d"], scale: float
) -> Float[Array, "b c"]:
    """Cosines of features and class directions times a scale.

    Args:
      features: Features of images.
      head: Class directions, of one task or of each image's; zero for classes that are absent.
      scale: Inverse temperature.
    """
    cosines = jnp.einsum("bd,...cd->...bc" if head.ndim == 2 else "bd,bcd->bc",
                         normalize(features), head)  # fmt: skip
    return jnp.where(jnp.any(head != 0, axis=-1), scale * cosines, ABSENT)


def pretrained_base(config: Any, run: RunDirectory) -> Any:
    """Parameters of the encoder: pretrained ones of texts, or after classifying characters."""
    if reads_texts(config):
        return pretrained_texts(config)
    own = config.copy_and_resolve_references()
    options = own.pretraining
    own.train.update({"steps": options.steps, "batch_size": options.batch_size})
    own.train.checkpoint_every = options.steps
    own.optimizer.update({k: options[k] for k in ("learning_rate", "warmup_steps")})
    sources = {part: background(config, part) for part in ("train", "test")}
    model = build_encoder(config, models.Classifier(sources["train"].num_classes, cosine=True))
    problem = classification(
        own, model, train=lambda: sources["train"], held_out=lambda: sources["test"]
    )
    inner = RunDirectory(run.path / "base", run.config, config_name=run.config_name)
    state = on_one_device(train(own, inner, problem, "eval/accuracy"))
    inner.close()
    return state.params["encoder"]


def head_of(config: Any, base: Any, source: data.ArraySource) -> Float[Array, "c d"]:
    """A frozen head: directions of the class means of the base's unit features, centred.

    Args:
      config: The run's config, of which `head.classes` is read.
      base: Parameters of the base.
      source: Training images of a task.

    Returns:
      Unit rows, and rows of zeros up to `head.classes`.
    """
    arrays = source.arrays()
    found = normalize(features(network(config), base, jnp.asarray(arrays["image"])))
    member = jax.nn.one_hot(arrays["label"], config.head.classes)
    means = (member.T @ found) / jnp.maximum(member.sum(0), 1)[:, None]
    real = jnp.arange(config.head.classes) < source.num_classes
    center = jnp.sum(jnp.where(real[:, None], means, 0), axis=0) / source.num_classes
    return jnp.where(real[:, None], normalize(means - center), 0)


def finetuning(
    config: Any,
    count: int,
    sources: Callable[[], Sequence[data.ArraySource]],
    validation: Callable[[], Sequence[data.ArraySource]],
    *,
    starts: Any = None,
    base: Any = None,
    heads: Array | None = None,
) -> Task:
    """The problem of fine-tuning several models, each on images of its own; its seed is its place.

    Args:
      config: The run's config.
      count: Number of models.
      sources: Opens the training images of each.
      validation: Opens the images that each is evaluated on during training.
      starts: First parameters, stacked; drawn if not given.
      base: Parameters that are kept beside them; zeros if not given.
      heads: Frozen heads [count, classes, d]; zeros if not given.
    """
    first, module = count * config.seed, network(config)
    pipeline = None if reads_texts(config) else augmentation(config, "augment_experts")

    def member(own: Any) -> Task:
        place = own.seed - np.uint32(first)  # the type of seeds in a program, see `many`

        def drawn(key: Any) -> Any:
            return nn.meta.unbox(module.init(key, seen(jnp.zeros_like(spec(own, 1)))))

        def variables(key: Any) -> Any:
            if starts is None:
                return drawn(key)
            return {"params": jax.tree.map(lambda leaf: leaf[place], starts)}

        def kept(key: Any, variables: Any) -> dict[str, Any]:
            zeros = jax.tree.map(jnp.zeros_like, variables["params"])
            head = jnp.zeros((own.head.classes, module.width)) if heads is None else heads[place]
            return {"base": zeros if base is None else base, "head": head}

        def loss(params: Any, state: TrainState, batch: Any) -> Loss:
            images = seen(batch["image"])
            if pipeline is not None:
                images = pipeline(state.step_key, images)
            found = logits(module.apply({"params": params}, images), state.extra["head"],
                           config.head.scale)  # fmt: skip
            each = optax.softmax_cross_entropy_with_integer_labels(found, batch["label"])
            right = jnp.mean(jnp.argmax(found, axis=-1) == batch["label"])
            return Loss(jnp.mean(each), {"accuracy": right})

        def batches(part: int = 0, parts: int = 1) -> Any:
            return data.batches(
                sources()[int(place)], batch_size=own.train.batch_size, seed=int(own.seed),
                part=part, parts=parts,
            )  # fmt: skip

        def evaluate(state: TrainState) -> dict[str, float]:
            arrays = validation()[int(place)].arrays()
            images = Images(*(jnp.asarray(x) for x in (
                arrays["image"], arrays["label"], np.zeros(len(arrays["label"]), np.int32),
            )))  # fmt: skip
            found = hits(module, state.params, state.extra["head"][None], images,
                         config.head.scale)  # fmt: skip
            return {"accuracy": float(jnp.mean(found))}

        return gradient_task(
            loss=loss, init_variables=variables, batches=batches, evaluate=evaluate, extra=kept,
            optimizer=build_optimizer(dict(own.optimizer), steps=own.train.steps),
            batch_spec={
                "image": spec(own, own.train.batch_size),
                "label": jax.ShapeDtypeStruct((own.train.batch_size,), jnp.int32),
            },
        )  # fmt: skip

    return many(member, [replaced(config, {"seed": first + i}) for i in range(count)])


def finetuned(
    config: Any,
    run: RunDirectory,
    sources: Sequence[data.ArraySource],
    validation: Sequence[data.ArraySource],
    *,
    starts: Any,
    base: Any,
    heads: Array,
) -> Any:
    """Parameters after fine-tuning as `finetuning` describes it, stacked, on one device."""
    together = finetuning(
        config, len(sources), lambda: sources, lambda: validation, starts=starts, base=base,
        heads=heads,
    )  # fmt: skip
    return on_one_device(train(config, run, together, "eval/accuracy")).params


@functools.partial(jax.jit, static_argnames="module")
def features(module: Any, params: Any, images: Array) -> Float[Array, "n d"]:
    """Features of byte images, or of texts, a few at a time."""

    def of_image(image: Array) -> Array:
        return module.apply({"params": params}, seen(image)[None])[0]

    return jax.lax.map(of_image, images, batch_size=ROWS)


@functools.partial(jax.jit, static_argnames="module")
def scores(
    module: Any, params: Any, heads: Array, images: Images, scale: Any
) -> Float[Array, "n c"]:
    """Logits of images of several tasks, each by the head of its own."""
    found = features(module, params, images.image)
    return logits(found, heads[images.task], scale)


@functools.partial(jax.jit, static_argnames="module")
def hits(module: Any, params: Any, heads: Array, images: Images, scale: Any) -> Bool[Array, " n"]:
    """Which images of several tasks a model names rightly, each by the head of its own task."""
    return jnp.argmax(scores(module, params, heads, images, scale), axis=-1) == images.label
