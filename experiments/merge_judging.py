"""How right merged encoders are: data with labels, nearest neighbours of features."""

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np

from rml import data, evaluation
from rml.errors import UserError

NEIGHBOURS = 10


def accuracy(encoder: Any, options: argparse.Namespace) -> float:
    """Accuracy of nearest neighbours on a random half of images or texts; the other half votes."""
    inputs, labels, classes = labelled(encoder, options)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = jnp.asarray(encoder(inputs)[order]), jnp.asarray(labels[order])
    found = evaluation.knn_accuracy(
        x[::2], y[::2], x[1::2], y[1::2], num_classes=classes, k=min(NEIGHBOURS, len(x[::2]))
    )
    return float(found)


def labelled(encoder: Any, options: argparse.Namespace) -> tuple[Any, Any, int]:
    """What an encoder is judged by, as it takes it: images or texts, their labels, classes."""
    where = encoder.config["data"].get("data_dir")
    if encoder.kind == "texts":
        found = data.load_text(
            options.data, options.split, text_key=options.text, label_key=options.label,
            data_dir=where,
        )  # fmt: skip
        return found.texts, found.labels, len(found.class_names)
    for key in ("text", "label"):
        if getattr(options, key):
            raise UserError(f"--{key} is for encoders of texts, these are of {encoder.kind}")
    source = data.require_labels(
        data.load(options.data, options.split, data_dir=where), "experiments.merge"
    )
    images = encoder.read(source)
    return images, np.asarray(images.labels), source.num_classes
