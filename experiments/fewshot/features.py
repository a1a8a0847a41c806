"""Where features come from: base training, another run's encoder, pixels, a file, or texts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from experiments.common.class_parts import image_parts
from experiments.common.encoders import load_encoder
from experiments.common.evaluators import pixels
from experiments.common.images import warn_of_oddities
from experiments.fewshot import base_training, common
from experiments.fewshot.common import Features, check_parts
from rml import evaluation
from rml.data import ArraySource, load_text
from rml.data.classes import PARTS, first_of_each_class, read_feature_parts
from rml.data.own import path_of
from rml.embedding import embed
from rml.errors import UserError, unknown
from rml.models import pretrained
from rml.training import Progress, RunDirectory, make_mesh

EVALUATED = ("validation", "novel")
ORIGINS = ("training", "run", "pixels", "npz", "text")


def load_features(config: Any, run: RunDirectory) -> Features:
    """Loads the features that `features.of` names, transformed as `features.transform` says.

    Args:
      config: The run's config. `features.of` is "training" (a classifier of the base classes is
        trained in this run first), "run" (the encoder of the finished run in the directory
        `features.run`, or a pretrained one, see `load_encoder`), "pixels" (the images, or vectors
        of `data.name=npz:PATH`, as they are), "npz" (`data.name=npz:PATH` with parts, see
        `read_feature_parts`) or "text" (of a pretrained text encoder, see `text_features`).
      run: The run directory.

    Returns:
      The features.

    Raises:
      UserError: An unknown origin, a run or file that cannot be used, or too few classes for the
        episodes, before anything is trained.
    """
    origin = config.features.of
    if origin not in ORIGINS:
        raise unknown("features.of", origin, ORIGINS)
    if origin == "npz":
        features = file_features(config)
    elif origin == "text":
        features = text_features(config)
    else:
        parts = image_parts(config)
        check_parts(config, {part: parts[part].labels for part in EVALUATED})
        if origin != "pixels" and config.data.held_out != config.data.base:
            warn_of_oddities(parts["base"], parts["held_out"])
        if origin == "run":
            features = frozen_features(config, parts)
        else:
            features = common.encode_parts(config, parts, image_encoder(config, run))
    return common.transformed(config, features)


def image_encoder(config: Any, run: RunDirectory) -> Callable[[Any], Any]:
    """The function of images that `features.of` names; "training" trains it first."""
    if config.features.of == "pixels":
        return pixels
    return base_training.encoder(config, base_training.train(config, run))


def frozen_features(config: Any, parts: Mapping[str, ArraySource]) -> Features:
    """Features of the images of each part by an encoder of elsewhere, computed once."""
    name, encoder = config.features.run, load_encoder(config.features.run, config.data.image_shape)
    return {
        part: (
            jnp.asarray(evaluation.cached_features(encoder, parts[part], name=f"{name}-{part}")),
            jnp.asarray(parts[part].labels),
        )
        for part in PARTS
    }


def file_features(config: Any) -> Features:
    """Features of a user's file, as they are."""
    if not config.data.name.startswith("npz:"):
        raise UserError(f"data.name is {config.data.name!r}, expected npz:PATH")
    read = read_feature_parts(path_of(config.data.name, "npz"))
    check_parts(config, {part: read[part][1] for part in EVALUATED})
    return {part: (jnp.asarray(x), jnp.asarray(y)) for part, (x, y) in read.items()}


def text_features(config: Any) -> Features:
    """Features of the texts of each part's split by a pretrained encoder.

    `text` names the encoder of `rml.models.pretrained` and which keys are text and class. Classes
    with fewer than `min_examples` texts are left out, of others the first `max_examples` taken.
    """
    options, progress, found = config.text, Progress(), {}
    given = {key: options[key] for key in ("text_key", "label_key", "min_examples")}
    for part in PARTS:
        read = load_text(
            config.data.name, config.data[part], data_dir=config.data.data_dir, **given
        )
        kept = first_of_each_class(read.labels, options.max_examples)
        found[part] = [read.texts[row] for row in kept], read.labels[kept]
    check_parts(config, {part: found[part][1] for part in EVALUATED})
    loaded = pretrained.load(options.encoder)
    encoder, variables = loaded.text_encoder()
    features: Features = {}
    for part, (texts, labels) in found.items():
        progress.note(f"{part}: {len(texts)} texts of {len(set(labels.tolist()))} classes")
        vectors = embed(
            encoder.apply, variables, loaded.tokenizer, texts,
            max_length=options.max_length, mesh=make_mesh(config.mesh),
        )  # fmt: skip
        features[part] = jnp.asarray(vectors), jnp.asarray(labels)
    return features
