"""Image encoders as a config names them, and the encoder of a run or of published weights."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments.common.weights import WEIGHTS, open_weights, pretrained_encoder
from experiments.registry import config_keys, find_experiment
from rml import models
from rml.data import augment
from rml.embedding import TextEmbedder, on_mesh
from rml.encoder import Encoder, ImageEmbedder
from rml.errors import UserError, local_path
from rml.models.layers import module_options
from rml.training import Task, TrainState, make_mesh
from rml.training.checkpoint import restore_state
from rml.training.config_file import CONFIG, TRACES, check_complete, read_config

TOKENIZER = "tokenizer.json"
"""A run's file with the tokenizer that its encoder reads."""
BUILT = "encoder.json"
"""A run's file with what builds its text encoder, where that of another run was the start."""

KINDS = {
    "images": ("data.image_shape", "an encoder of images, such as contrastive.simclr"),
    "texts": ("tokens", "a text encoder, such as retrieval.contriever"),
}
"""By kind of encoder, a key that its configs have, and what is expected of a run."""


@dataclasses.dataclass(frozen=True)
class OfModel:
    """A function that a model is of its inputs, equal for equal models: these compile it once."""

    model: Any

    def __hash__(self) -> int:
        return hash(type(self.model))  # attributes of a model may be lists


class Features(OfModel):
    """The features of images."""

    def __call__(self, variables: Any, images: Any) -> Array:
        """Features of a batch of images."""
        return self.model.apply(variables, augment.to_float(images), method=self.model.features)


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
    head, *predictor = (
        models.ProjectionHead(
            **module_options(part, models.ProjectionHead, config[part]), dtype=dtype
        )
        for part in ("head", "predictor")
        if part in config
    )
    if not predictor:
        return ProjectedEncoder(encoder, head)
    return PredictedEncoder(encoder, head, *predictor)


def initializer(model: nn.Module, config: Any) -> Callable[[Any], Any]:
    """Makes `init(key) -> variables` of a model for the images of a config."""
    return lambda key: model.init(key, jnp.zeros((2, *config.data.image_shape)), train=True)


def image_encoder(
    model: Any,
    config: Any,
    state: TrainState,
    function: Callable[[Any, Any], Array] | None = None,
) -> ImageEmbedder:
    """The features of a trained model, in the batches and on the mesh of its config.

    Args:
      model: A module with a method `features`.
      config: The run's config, of which `evaluation` or `features`, and `mesh` are read.
      state: The trained state.
      function: Another function `(variables, float images) -> [b, d]` than the features.

    Returns:
      The function of images.
    """
    features = Features(model) if function is None else _of_floats(function)
    size = (config.get("evaluation") or config.features).batch_size
    return ImageEmbedder(features, state.variables, size, make_mesh(config.mesh))


def _of_floats(function: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    return lambda variables, images: function(variables, augment.to_float(images))


def restore(directory: Path, task: Task, step: int | None = None) -> TrainState:
    """A state of a run, on this process's first device; the run is only read.

    Args:
      directory: The run directory.
      task: The run's task.
      step: Step of the checkpoint; the newest if not given.

    Returns:
      The state.

    Raises:
      UserError: There is no such checkpoint, or none of this task.
    """
    abstract = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )
    return restore_state(directory / "checkpoints", abstract, step=step)


def read_run(directory: Path, key: str) -> ConfigDict:
    """The config of another run.

    Args:
      directory: The run directory.
      key: What named the directory, such as a key of a config, for messages.

    Raises:
      UserError: There is no run, or one of several methods, each of which is a run.
    """
    holds_run = any((directory / name).exists() for name in (CONFIG, *TRACES))
    config = read_config(directory) if holds_run else None
    if config is None:
        raise UserError(f"{key} is {str(directory)!r}, expected the directory of a run")
    if (directory / "methods").is_dir():
        names = ", ".join(sorted(path.name for path in (directory / "methods").iterdir()))
        raise UserError(
            f"{directory} compares methods; expected the run of one of them, "
            f"{directory / 'methods'}/NAME with NAME one of {names}"
        )
    if not isinstance(config.get("experiment"), str):
        raise UserError(f"{directory / CONFIG} names no experiment, expected a run's config")
    return ConfigDict(config)


def load_embedder(
    directory: Path,
    kind: str | None = None,
    *,
    key: str,
    dtype: str | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    ended: bool = False,
    **options: Any,
) -> tuple[ConfigDict, Any, int]:
    """The encoder of another run, by its recipe's own `encoder(config, state)`.

    Args:
      directory: The run directory.
      kind: A key of `KINDS` that is expected; any if not given.
      key: What named the directory, such as a key of a config, for messages.
      dtype: Type that the encoder computes in; that of the run if not given.
      step: Step of the checkpoint; the newest if not given.
      mesh: Mesh on which it is applied; of all devices if not given.
      ended: Whether the run has to be complete.
      **options: What the recipe's `encoder` takes beside.

    Returns:
      The run's config, the encoder, and the step of its checkpoint.

    Raises:
      UserError: There is no run, none that learns such an encoder, an unknown option, no
        checkpoint, or the run has to be complete and is not.
    """
    config = read_run(directory, key)
    experiment = find_experiment(config.experiment)
    named = [name for name, (where, _) in KINDS.items() if where in config_keys(config)]
    if not hasattr(experiment, "encoder") or not named or kind not in (None, *named):
        expected = "an encoder" if kind is None else KINDS[kind][1]
        raise UserError(
            f"{directory} is a run of {config.experiment}, expected one with {expected}"
        )
    known = list(inspect.signature(experiment.encoder).parameters)[2:]
    for name in options:
        if name not in known:
            raise UserError(
                f"the encoder of {config.experiment} has no option {name!r}, "
                f"expected {' or '.join(map(repr, known)) or 'none'}"
            )
    used = config.copy_and_resolve_references()
    used.mesh = {}  # that of the run may have more devices than there are
    if dtype is not None:
        used.dtype = dtype
    if named[0] == "texts":
        used.tokens.file = str(directory / TOKENIZER)
        if not Path(used.tokens.file).is_file():
            raise UserError(f"{directory} has no {TOKENIZER}; let the run end first")
        if (directory / BUILT).is_file():
            built = json.loads((directory / BUILT).read_text())
            used.model = built["model"]
            used.tokens.update(built["tokens"])
    if ended:
        check_complete(directory, key)
    state = restore(directory, experiment.task(used), step)
    embedder = experiment.encoder(used, state, **options)
    if not isinstance(embedder, ImageEmbedder | TextEmbedder):
        raise UserError(
            f"the encoder of {config.experiment} is {type(embedder).__name__}, expected what "
            "image_encoder or text_encoder gives"
        )
    mesh = mesh or embedder.mesh or make_mesh()
    variables = on_mesh(embedder.variables, mesh)
    updates = int(jnp.max(state.step))  # of models that were trained as one the same
    return config, dataclasses.replace(embedder, variables=variables, mesh=mesh), updates


def open_encoder(
    name: str | Path, *, step: int | None = None, mesh: Mesh | None = None, **options: Any
) -> Encoder:
    """The encoder of a run, or of published weights, with its preprocessing; see `rml.load`."""
    key = "the run directory"
    directory = None if str(name).startswith(WEIGHTS) else local_path(name, key)
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    if directory is None:
        if step is not None or options:
            given = "a step" if step is not None else f"the option {next(iter(options))!r}"
            raise UserError(f"{name} takes no options, got {given}")
        return open_weights(str(name), mesh)
    config, embedder, found = load_embedder(directory, key=key, step=step, mesh=mesh, **options)
    kind = "images" if isinstance(embedder, ImageEmbedder) else "texts"
    return Encoder(kind, config.to_dict(), directory, found, embedder)


def load_encoder(name: str | Path, image_shape: Any, *, key: str = "features.run") -> ImageEmbedder:
    """The encoder of images of another run, or a pretrained one.

    Args:
      name: The run directory, or as `pretrained_encoder` takes it.
      image_shape: Shape of the images that it is given.
      key: Key of the config that named the encoder, for messages.

    Returns:
      The encoder.

    Raises:
      UserError: There is no run, none that learns an encoder of images of this shape, it has not
        ended, or `pretrained_encoder` finds no weights.
    """
    if str(name).startswith(WEIGHTS):
        return pretrained_encoder(str(name), image_shape, key=key)
    directory = local_path(name, key)
    config, embedder, _ = load_embedder(directory, "images", key=key, ended=True)
    if list(config.data.image_shape) != list(image_shape):
        raise UserError(
            f"the encoder of {directory} was trained on images {list(config.data.image_shape)}, "
            f"data.image_shape is {list(image_shape)}"
        )
    return embedder
