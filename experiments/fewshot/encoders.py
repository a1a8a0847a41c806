"""Where the features come from: base training, another run's encoder, pixels, or a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.contrastive import common as contrastive
from experiments.fewshot import base_training
from experiments.fewshot.common import Parts
from experiments.fewshot.episodes import check_classes, settings
from experiments.fewshot.features import Features, pixels, read_npz
from experiments.fewshot.texts import text_features
from experiments.hydra import common as hydra
from experiments.registry import find_experiment
from experiments.restore import restore
from rml.data import augment
from rml.errors import UserError, unknown
from rml.training import RunDirectory, Task

EVALUATED = ("validation", "novel")
ORIGINS = ("training", "run", "pixels", "npz", "text")


def load_features(config: Any, run: RunDirectory) -> Features:
    """The features that `features.of` names.

    Args:
      config: The run's config. `features.of` is "training" (a classifier of the base classes is
        trained in this run first), "run" (the encoder of the finished run in the directory
        `features.run`), "pixels" (the images, or vectors of `data.name=npz:PATH`, as they are) or
        "npz" (`data.name=npz:PATH` with parts, see `read_npz`) or "text" (of a pretrained text
        encoder, see `text_features`).
      run: The run directory.

    Returns:
      The features.

    Raises:
      UserError: An unknown origin, a run or file that cannot be used, or too few classes for the
        episodes, before anything is trained.
    """
    origin = config.features.of
    if origin == "npz":
        if not config.data.name.startswith("npz:"):
            raise UserError(f"data.name is {config.data.name!r}, expected npz:PATH")
        features = read_npz(Path(config.data.name[4:]).expanduser())
        check_classes(
            {part: getattr(features, part)[1] for part in EVALUATED}, config, settings(config)
        )
        return features
    if origin == "text":
        return text_features(config)
    if origin not in ORIGINS:
        raise unknown("features.of", origin, ORIGINS)
    parts = Parts(config)
    check_classes(
        {part: parts[part].arrays()["label"] for part in EVALUATED}, config, settings(config)
    )
    if origin == "pixels":
        return pixels(parts, batch_size=config.features.batch_size)
    if origin == "training":
        return base_training.features(config, parts, base_training.train(config, run))
    encoder = load_encoder(Path(config.features.run).expanduser(), config.data.image_shape)
    return Features.of(parts, encoder, batch_size=config.features.batch_size)


def load_encoder(directory: Path, image_shape: Any) -> Callable[[Any], Any]:
    """The encoder of another run.

    Args:
      directory: The run directory of a contrastive, Hydra or base-training experiment.
      image_shape: Of the images that it is given.

    Returns:
      uint8 or float images to features, jitted.

    Raises:
      UserError: There is no run, none of a known kind or for images of this shape, or it has no
        checkpoint.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"features.run is {str(directory)!r}, expected the directory of a run")
    if (directory / "methods").is_dir():
        names = ", ".join(sorted(path.name for path in (directory / "methods").iterdir()))
        raise UserError(
            f"{directory} compares methods; expected the run of one of them, "
            f"{directory / 'methods'}/NAME with NAME one of {names}"
        )
    config = ConfigDict(json.loads(file.read_text()))
    if list(config.data.image_shape) != list(image_shape):
        raise UserError(
            f"the encoder of {directory} was trained on images {list(config.data.image_shape)}, "
            f"data.image_shape is {list(image_shape)}"
        )
    model, task = _model_and_task(config)
    variables = contrastive.variables(restore(directory, task))

    @jax.jit
    def encoder(images: Any) -> Any:
        return model.apply(variables, augment.to_float(images), method=model.features)

    return encoder


def _model_and_task(config: Any) -> tuple[Any, Task]:
    area, _, _ = config.experiment.partition(".")
    if area == "hydra":
        method = config.get("method", "hydra")
        return hydra.build_model(config, method), hydra.task(config, method)
    if area == "contrastive":
        return contrastive.build_model(config), find_experiment(config.experiment).task(config)
    if area == "fewshot" and config.get("features", {}).get("of", "training") == "training":
        return base_training.build_model(config), base_training.task(config)
    raise unknown(
        "experiment with an encoder", config.experiment,
        ("contrastive.*", "hydra.*", "fewshot.base_training", "fewshot.compare that trained"),
    )  # fmt: skip
