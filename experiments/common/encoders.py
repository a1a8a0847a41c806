"""Image encoders: the one that a config names, and that of another run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments.registry import find_experiment
from rml import models
from rml.data import augment
from rml.errors import UserError
from rml.training import Task, TrainState
from rml.training.checkpoint import restore_state

Encoder = Callable[[Any], Array]
"""Images [b, h, w, c], uint8 or float in [0, 1], to features [b, d]; jitted."""


class ProjectedEncoder(nn.Module):
    """An encoder with the head that its loss sees."""

    encoder: nn.Module
    head: nn.Module

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p"]:
        """Projections of images."""
        return self.project(images, train=train)

    def project(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p"]:
        """Projections of images."""
        return self.head(self.encoder(images, train=train), train=train)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Features of images, what a downstream task takes."""
        return self.encoder(images, train=False)


class PredictedEncoder(ProjectedEncoder):
    """A projected encoder whose projections are predicted from another view's."""

    predictor: nn.Module

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p"]:
        """Predictions from images."""
        return self.predictor(self.project(images, train=train), train=train)


def build_encoder(config: Any, head: nn.Module | None = None) -> ProjectedEncoder:
    """Builds the encoder that a config names, with its head and, where named, its predictor.

    Args:
      config: The run's config, of which `model`, `head`, `predictor` and `dtype` are read.
      head: Another head than the projection that `config.head` describes.

    Returns:
      The module.
    """
    dtype = jnp.dtype(config.dtype)
    encoder = models.build(**config.model, dtype=dtype)
    if head is not None:
        return ProjectedEncoder(encoder, head)
    head = models.ProjectionHead(**config.head, dtype=dtype)
    if "predictor" not in config:
        return ProjectedEncoder(encoder, head)
    predictor = models.ProjectionHead(**config.predictor, dtype=dtype)
    return PredictedEncoder(encoder, head, predictor)


def initializer(model: ProjectedEncoder, config: Any) -> Callable[[Any], Any]:
    """Makes `init(key) -> variables` of a model for the images of a config."""
    return lambda key: model.init(key, jnp.zeros((2, *config.data.image_shape)), train=True)


def image_encoder(model: Any, state: TrainState) -> Encoder:
    """The features of a trained model that has a method `features`."""
    variables = state.variables

    @jax.jit
    def encode(images: Any) -> Array:
        return model.apply(variables, augment.to_float(images), method=model.features)

    return encode


def restore(directory: Path, task: Task) -> TrainState:
    """The newest state of a run, on one device; the run is only read.

    Args:
      directory: The run directory.
      task: The run's task.

    Returns:
      The state.

    Raises:
      UserError: There is no checkpoint, or none of this task.
    """
    abstract = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )
    return restore_state(directory / "checkpoints", abstract)


def read_run(directory: Path, key: str) -> ConfigDict:
    """The config of another run.

    Args:
      directory: The run directory.
      key: Key of the config that named the directory, for messages.

    Raises:
      UserError: There is no run, or one of several methods, each of which is a run.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"{key} is {str(directory)!r}, expected the directory of a run")
    if (directory / "methods").is_dir():
        names = ", ".join(sorted(path.name for path in (directory / "methods").iterdir()))
        raise UserError(
            f"{directory} compares methods; expected the run of one of them, "
            f"{directory / 'methods'}/NAME with NAME one of {names}"
        )
    return ConfigDict(json.loads(file.read_text()))


def load_encoder(directory: Path, image_shape: Any, *, key: str = "features.run") -> Encoder:
    """The encoder of another run, by its recipe's own `encoder(config, state)`.

    Args:
      directory: The run directory.
      image_shape: Of the images that it is given.
      key: Key of the config that named the directory, for messages.

    Returns:
      The encoder.

    Raises:
      UserError: There is no run, none that learns an encoder of images of this shape, or it has no
        checkpoint.
    """
    config = read_run(directory, key)
    experiment = find_experiment(config.experiment)
    if not hasattr(experiment, "encoder") or "image_shape" not in config.data:
        raise UserError(
            f"{directory} is a run of {config.experiment}, expected one that learns an encoder of "
            "images, such as contrastive.simclr"
        )
    if list(config.data.image_shape) != list(image_shape):
        raise UserError(
            f"the encoder of {directory} was trained on images {list(config.data.image_shape)}, "
            f"data.image_shape is {list(image_shape)}"
        )
    return experiment.encoder(config, restore(directory, experiment.task(config)))
