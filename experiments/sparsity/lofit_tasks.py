"""Short texts of several tasks, and a frozen encoder that names classes by their means."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from rml import data
from rml.data import tokens
from rml.errors import UserError
from rml.models import HeadEdits, pretrained
from rml.models.text_encoder import pool
from rml.ops import normalize

ABSENT = -1e9
"""Logit of a class without a text: finite, and as good as impossible."""
ROWS = 128
"""Texts that are read at a time."""


class Texts(NamedTuple):
    """Texts as tokens, [..., n, t], and their classes, [..., n]."""

    tokens: Array
    mask: Array
    label: Array


class Bed(NamedTuple):
    """A sample of training texts of a task.

    Attributes:
      train: Texts by step, [steps, b].
      prototypes: Directions of classes [c, d], of the frozen encoder and of other training texts;
        zeros for a class without any.
    """

    train: Texts
    prototypes: Array


class Encoder(NamedTuple):
    """What a compiled program knows of the encoder.

    Attributes:
      module: The encoder.
      pooling: What makes one vector of a text.
      scale: Inverse temperature of the cosines.
    """

    module: Any
    pooling: str
    scale: float


class Model(NamedTuple):
    """An encoder with its parameters and its tokenizer."""

    encoder: Encoder
    params: Any
    tokenizer: Any


def load_model(config: Any) -> Model:
    """Loads the frozen encoder that a config names."""
    loaded = pretrained.load(config.model.name)
    encoder = Encoder(loaded.module, loaded.pooling, config.head.scale)
    return Model(encoder, loaded.variables["params"], loaded.tokenizer)


def read_beds(config: Any, model: Model) -> dict[str, list[Bed]]:
    """By task its samples of training texts, each with prototypes of its own.

    Raises:
      UserError: A task has fewer texts than are asked for.
    """
    sample, steps = config.sample, config.train.steps
    found: dict[str, list[Bed]] = {}
    anchors, texts = sample.anchors, sample.texts
    for task in (config.data.name, *config.data.others):
        rng = np.random.default_rng(config.seed)
        train = read(config, model, task, "train", sample.draws * (anchors + texts), rng)
        found[task] = []
        for first in range(0, len(train.label), anchors + texts):
            size = steps * config.train.batch_size
            passes = [rng.permutation(texts) for _ in range(-(-size // texts))]
            rows = np.concatenate(passes)[:size].reshape(steps, -1) + first + anchors
            own = prototypes(
                model, take(train, np.s_[first : first + anchors]), config.head.classes
            )
            found[task].append(Bed(take(train, rows), own))
    return found


def read(
    config: Any, model: Model, task: str, part: str, count: int, rng: np.random.Generator
) -> Texts:
    """Texts of a split of a task, drawn at random.

    Raises:
      UserError: There are too few, or they have more classes than `head.classes`.
    """
    options = config.data
    found = data.load_text(
        task, options[part], text_key=options.text_keys[task], data_dir=options.data_dir
    )
    if len(found.texts) < count:
        raise UserError(f"{task} has {len(found.texts)} texts of {part}, expected {count}")
    if max(found.labels) >= config.head.classes:
        raise UserError(
            f"{task} has texts of class {max(found.labels)}, expected numbers below "
            f"head.classes={config.head.classes}"
        )
    rows = rng.permutation(len(found.texts))[:count]
    own = encoded(model.tokenizer, [found.texts[row] for row in rows], config.sample.length)
    return Texts(own, own != 0, jnp.asarray(found.labels[rows], jnp.int32))


def take(texts: Texts, rows: Any) -> Texts:
    """Some of the texts, in the shape of the rows."""
    return Texts(*(x[rows] for x in texts))


def encoded(tokenizer: Any, texts: list[str], length: int) -> Array:
    """Tokens of texts [n, t], cut off and filled up with zeros."""
    rows = tokens.encode(tokenizer, texts, max_length=length)
    found = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return jnp.asarray(found)


def prototypes(model: Model, texts: Texts, classes: int) -> Float[Array, "c d"]:
    """Directions of class means from the mean of all classes, zeros for a class without texts."""
    member = jax.nn.one_hot(texts.label, classes)
    present = member.any(0)[:, None]
    means = (member.T @ vectors(model, texts)) / jnp.maximum(member.sum(0), 1)[:, None]
    return jnp.where(present, normalize(means - means.sum(0) / present.sum()), 0)


def embed(encoder: Encoder, params: Any, edits: HeadEdits | None, texts: Texts) -> Array:
    """Unit vectors of texts."""
    hidden = encoder.module.apply({"params": params}, texts.tokens, texts.mask, edits=edits)
    return normalize(pool(hidden, texts.mask, encoder.pooling))


def logits(
    encoder: Encoder, vectors: Float[Array, "n d"], prototypes: Float[Array, "c d"]
) -> Float[Array, "n c"]:
    """Cosines of vectors and classes times the scale."""
    present = jnp.any(prototypes != 0, axis=-1)
    return jnp.where(present, encoder.scale * (vectors @ prototypes.T), ABSENT)


def cross_entropy(
    encoder: Encoder, params: Any, edits: HeadEdits | None, texts: Texts, prototypes: Array
) -> Float[Array, ""]:
    """The mean loss of a batch, over texts whose class has a prototype."""
    found = logits(encoder, embed(encoder, params, edits, texts), prototypes)
    each = optax.softmax_cross_entropy_with_integer_labels(found, texts.label)
    known = jnp.any(prototypes != 0, axis=-1)[texts.label]
    return jnp.sum(jnp.where(known, each, 0)) / jnp.maximum(known.sum(), 1)


def vectors(model: Model, texts: Texts, params: Any = None, edits: Any = None) -> Array:
    """Unit vectors of many texts, by other parameters or by edits where they are given."""
    return _vectors(model.encoder, model.params if params is None else params, edits, texts)


def hits(
    model: Model, texts: Texts, prototypes: Array, params: Any = None, edits: Any = None
) -> Bool[np.ndarray, " n"]:
    """Which texts are named rightly, likewise."""
    found = logits(model.encoder, vectors(model, texts, params, edits), prototypes)
    return np.asarray(jnp.argmax(found, axis=-1) == texts.label)


@functools.partial(jax.jit, static_argnames="encoder")
def _vectors(encoder: Encoder, params: Any, edits: Any, texts: Texts) -> Array:
    return jax.lax.map(
        lambda own: embed(encoder, params, edits, jax.tree.map(lambda x: x[None], own))[0],
        texts, batch_size=ROWS,
    )  # fmt: skip
