"""What is trained at several sizes: causal or masked language models, or classifiers of images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Float

from experiments.common import small_lm, supervised
from experiments.common.images import open_images
from experiments.common.many import replaced
from experiments.merging import masked_text
from experiments.merging.multilevel_similarity import Parts, parts_of
from rml import models
from rml.data import augment
from rml.errors import UserError
from rml.evaluation import program_flops
from rml.models.attention import attend
from rml.training import Task

Shape = tuple[int, int]
"""By how much width and depth are divided."""
READ = 100
"""Test images, or windows of hidden tokens, whose layers and heads are compared."""


class Problem(NamedTuple):
    """A training problem whose model the config describes.

    Attributes:
      task: Makes the task of a config.
      losses: Losses of held-out examples, from a config, parameters and "validation" or "test".
      parts: What layers and heads give for test examples, from parameters of the config's model.
      unit: Unit of the loss.
      examples: Number of test examples that `parts` reads.
    """

    task: Callable[[Any], Task]
    losses: Callable[[Any, Any, str], Float[np.ndarray, " m"]]
    parts: Callable[[Any], Parts]
    unit: str
    examples: int


def problem(config: Any) -> Problem:
    """The problem of a config: hidden tokens where it has `masking`, next ones, or images."""
    if "masking" in config:
        return _masked(config)
    return _text(config) if "text" in config else _images(config)


def of_shape(config: Any, shape: Shape) -> Any:
    """The config of a smaller model: width, heads and MLP divided, and depth.

    Raises:
      UserError: A size is not divided.
    """
    width, depth = shape
    changes = {}
    for key, ratio in {
        "width": width, "heads": width, "kv_heads": width, "mlp": width, "depth": depth
    }.items():  # fmt: skip
        if key not in config.model:
            continue
        if config.model[key] % ratio:
            raise UserError(f"model.{key} is {config.model[key]}, expected a multiple of {ratio}")
        changes[f"model.{key}"] = config.model[key] // ratio
    return replaced(config, changes)


def step_flops(task: Task) -> float:
    """Floating-point operations of the products of one step of training, without computing any."""
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    return program_flops(task.step, state, task.batch_spec, platform="cpu")


def _text(config: Any) -> Problem:
    text = small_lm.read_text(config)
    windows = small_lm.held_out_windows(config, text)

    def losses(own: Any, params: Any, part: str) -> Float[np.ndarray, " m"]:
        return small_lm.nats(own, attend, [params], windows[part])[0].mean(axis=-1)

    def parts(params: Any) -> Parts:
        return parts_of(small_lm.language_model(config), params, windows["test"])

    count = len(windows["test"])
    return Problem(lambda own: small_lm.task(own, text), losses, parts, "nats a token", count)


def _masked(config: Any) -> Problem:
    text = small_lm.read_text(config)
    windows = small_lm.held_out_windows(config, text)

    def losses(own: Any, params: Any, part: str) -> Float[np.ndarray, " m"]:
        return masked_text.held_out(own, params, windows[part])

    read = windows["test"][:READ]

    def parts(params: Any) -> Parts:
        return parts_of(masked_text.bert(config), params["backbone"], read)

    return Problem(
        lambda own: masked_text.task(own, text), losses, parts, "nats a hidden token", len(read)
    )


def _images(config: Any) -> Problem:
    sources = {
        part: open_images(config, part, labelled=True) for part in ("train", "validation", "test")
    }

    def losses(own: Any, params: Any, part: str) -> Float[np.ndarray, " m"]:
        model = models.build(**own.model)
        logits, labels = supervised.logits_of(own, model, {"params": params}, sources[part])
        found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return np.asarray(found, np.float64)

    def task(own: Any) -> Task:
        return supervised.classification(
            own, models.build(**own.model), train=lambda: sources["train"],
            held_out=lambda: sources["test"],
        )  # fmt: skip

    def parts(params: Any) -> Parts:
        images = np.stack([sources["test"][i]["image"] for i in range(READ)])
        return parts_of(models.build(**config.model), params, augment.to_float(images))

    return Problem(task, losses, parts, "nats an image", READ)
