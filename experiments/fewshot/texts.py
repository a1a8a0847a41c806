"""Features of texts: classes are those of a text data set, such as the modules of pydocs."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.fewshot.common import PARTS
from experiments.fewshot.episodes import check_classes, settings
from experiments.fewshot.features import Features
from rml.data import load_text
from rml.models import pretrained
from rml.retrieval.embed import embed
from rml.training import Progress, make_mesh

EVALUATED = ("validation", "novel")


def text_features(config: Any) -> Features:
    """Features of a pretrained text encoder.

    Args:
      config: The run's config. `data` names the splits of each part, `text.encoder` a name of
        `rml.models.pretrained`, `text.text_key` and `text.label_key` what is text and class;
        classes with fewer than `text.min_examples` texts are left out, of the others the first
        `text.max_examples` are taken.

    Returns:
      The features; no part has another's texts where the data set's splits share no class.

    Raises:
      UserError: The data or the weights cannot be read, or there are too few classes for the
        episodes.
    """
    options = config.text
    read = {
        part: load_text(
            config.data.name, config.data[part], text_key=options.text_key,
            label_key=options.label_key, min_examples=options.min_examples,
            data_dir=config.data.data_dir,
        )
        for part in PARTS
    }  # fmt: skip
    kept = {part: first_of_each(own.labels, options.max_examples) for part, own in read.items()}
    labels = {part: own.labels[kept[part]] for part, own in read.items()}
    check_classes({part: labels[part] for part in EVALUATED}, config, settings(config))
    loaded = pretrained.load(options.encoder)
    encoder, variables = loaded.text_encoder()
    progress, found = Progress(), []
    for part in PARTS:
        texts = [read[part].texts[row] for row in kept[part]]
        progress.note(f"{part}: {len(texts)} texts of {len(set(labels[part].tolist()))} classes")
        vectors = embed(
            encoder.apply, variables, loaded.tokenizer, texts,
            max_length=options.max_length, mesh=make_mesh(config.mesh),
        )  # fmt: skip
        found.append((jnp.asarray(vectors), jnp.asarray(labels[part])))
    return Features(*found)


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` examples of each class, in order."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < count])
