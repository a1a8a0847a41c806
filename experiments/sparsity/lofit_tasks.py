"""Short texts of several tasks, and a frozen model that names their classes.

An encoder names them by the means of its vectors, a decoder by the word that it would go on with,
after a prompt. Either way a class has a direction, and the logits are products with what the model
makes of a text.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from rml import data
from rml.data import tokens
from rml.data.text import LabelledTexts
from rml.errors import UserError
from rml.losses import dpo_loss
from rml.models import HeadEdits, pretrained
from rml.models.text_encoder import pool
from rml.ops import normalize

ABSENT = -1e9
"""Logit of a class without a text: finite, and as good as impossible."""
ROWS = 128
"""Texts that are read at a time."""


class Texts(NamedTuple):
    """Texts as tokens, [..., n, t], and their classes, [..., n].

    Attributes:
      tokens: Tokens.
      mask: Which of them are text.
      label: The class of each.
      rejected: A wrong class, to which the right one is to be preferred; None where unused.
      margin: Logit of the class less that of the wrong one, both of the frozen model.
    """

    tokens: Array
    mask: Array
    label: Array
    rejected: Array | None = None
    margin: Array | None = None


class Bed(NamedTuple):
    """A sample of training texts of a task.

    Attributes:
      train: Texts by step, [steps, b].
      prototypes: Directions of classes [c, d]: those of means of other training texts, or rows of
        the frozen model's output; zeros for a class without any.
    """

    train: Texts
    prototypes: Array


class Encoder(NamedTuple):
    """What a compiled program knows of the model.

    Attributes:
      module: The model.
      pooling: What makes one vector of a text.
      scale: What products with directions of classes are multiplied by.
      unit: Whether vectors are brought to unit length, so that products are cosines.
      beta: Strength of DPO; 0 for cross-entropy.
    """

    module: Any
    pooling: str
    scale: float
    unit: bool = True
    beta: float = 0.0


class Words(NamedTuple):
    """The words that name the classes of a task.

    Attributes:
      tokens: The token of each word [c], ascending.
      number: Place of each class's word, by the class's number in the data; -1 if it has none.
    """

    tokens: np.ndarray
    number: np.ndarray


class Model(NamedTuple):
    """An encoder with its parameters and its tokenizer."""

    encoder: Encoder
    params: Any
    tokenizer: Any


def load_model(config: Any) -> Model:
    """Loads the frozen model that a config names."""
    loaded = pretrained.load(config.model.name)
    pooling = "last" if by_words(config) else loaded.pooling
    encoder = Encoder(
        loaded.module, pooling, config.head.scale, unit=not by_words(config), beta=config.loss.beta
    )
    return Model(encoder, loaded.variables["params"], loaded.tokenizer)


def by_words(config: Any) -> bool:
    """Whether classes are named by words after a prompt, rather than by means of vectors."""
    return config.head.names == "words"


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
        opened = open_split(config, task, "train")
        count = sample.draws * (anchors + texts)
        train = drawn(config, model, task, "train", opened, count, rng)
        found[task] = []
        if by_words(config):
            words = words_of(model.tokenizer, opened.class_names, config.data.left_out)
            own = directions(model, words, config.head.classes)
        for first in range(0, len(train.label), anchors + texts):
            size = steps * config.train.batch_size
            passes = [rng.permutation(texts) for _ in range(-(-size // texts))]
            rows = np.concatenate(passes)[:size].reshape(steps, -1)
            if not by_words(config):
                ahead = take(train, np.s_[first : first + anchors])
                own = prototypes(model, ahead, config.head.classes)
            texts_of_bed = take(train, np.s_[first + anchors : first + anchors + texts])
            if config.loss.beta:
                texts_of_bed = against_wrong(model, texts_of_bed, own, rng)
            found[task].append(Bed(take(texts_of_bed, rows), own))
    return found


def against_wrong(
    model: Model, texts: Texts, prototypes: Float[Array, "c d"], rng: np.random.Generator
) -> Texts:
    """Texts with a wrong class each, drawn by the frozen model's odds of wrong classes."""
    found = np.asarray(logits(model.encoder, vectors(model, texts), prototypes), np.float64)
    every, label = np.arange(len(found)), np.asarray(texts.label)
    wrong = found.copy()
    wrong[every, label] = ABSENT
    drawn = np.argmax(wrong + rng.gumbel(size=wrong.shape), axis=1)
    margin = found[every, label] - found[every, drawn]
    return texts._replace(
        rejected=jnp.asarray(drawn, jnp.int32), margin=jnp.asarray(margin, jnp.float32)
    )


def open_split(config: Any, task: str, part: str) -> LabelledTexts:
    """All texts of a split of a task."""
    options = config.data
    return data.load_text(
        task, options[part], text_key=options.text_keys[task], data_dir=options.data_dir
    )


def read(
    config: Any, model: Model, task: str, part: str, count: int, rng: np.random.Generator
) -> Texts:
    """Texts of a split of a task, see `drawn`."""
    return drawn(config, model, task, part, open_split(config, task, part), count, rng)


def drawn(
    config: Any, model: Model, task: str, part: str, found: LabelledTexts, count: int,
    rng: np.random.Generator,
) -> Texts:  # fmt: skip
    """Texts of an opened split of a task, drawn at random.

    Raises:
      UserError: There are too few, or they have more classes than `head.classes`.
    """
    options = config.data
    labels, prompt = found.labels, "{}"
    if by_words(config):
        number = words_of(model.tokenizer, found.class_names, options.left_out).number
        labels = np.where(labels >= 0, number[labels], -1)
        prompt = options.prompts[task]
    named = np.flatnonzero(labels >= 0)
    if len(named) < count:
        raise UserError(f"{task} has {len(named)} texts of {part}, expected {count}")
    if max(labels) >= config.head.classes:
        raise UserError(
            f"{task} has texts of class {max(labels)}, expected numbers below "
            f"head.classes={config.head.classes}"
        )
    rows = named[rng.permutation(len(named))[:count]]
    own, mask = encoded(
        model.tokenizer, [found.texts[row] for row in rows], config.sample.length, prompt
    )
    return Texts(own, mask, jnp.asarray(labels[rows], jnp.int32))


def words_of(tokenizer: Any, names: Sequence[str], left_out: Sequence[str] = ()) -> Words:
    """The words of classes: what follows a name's last dot or colon, if it is one token.

    Names of one word are one class. Words stand in a sentence, so that a space is before them.

    Args:
      tokenizer: The model's.
      names: Names of the data's classes.
      left_out: Those of names whose word says nothing.
    """
    words = [" " + re.split("[.:]", name)[-1] for name in names]
    rows = tokens.encode(tokenizer, words, max_length=8, special=False)
    each = [
        int(row[0]) if len(row) == 1 and name not in left_out else -1
        for name, row in zip(names, rows, strict=True)
    ]
    kept = np.array(sorted({*each} - {-1}))
    return Words(kept, np.where(np.array(each) < 0, -1, np.searchsorted(kept, each)))


def directions(model: Model, words: Words, classes: int) -> Float[Array, "c d"]:
    """Rows of the model's output for the words, then zeros."""
    params = model.params
    table = params["head"]["kernel"].T if "head" in params else params["tokens"]["embedding"]
    return jnp.zeros((classes, table.shape[1])).at[: len(words.tokens)].set(table[words.tokens])


def take(texts: Texts, rows: Any) -> Texts:
    """Some of the texts, in the shape of the rows."""
    return jax.tree.map(lambda x: x[rows], texts)


def encoded(
    tokenizer: Any, texts: list[str], length: int, prompt: str = "{}"
) -> tuple[Array, Bool[Array, "n t"]]:
    """Tokens of texts [n, t], filled up with zeros, and which are of texts.

    Args:
      tokenizer: The model's.
      texts: The texts, what does not fit is cut off their ends.
      length: Number of tokens t.
      prompt: What stands around each text, and is kept whole; special tokens stand where there is
        none.
    """
    before, after = prompt.split("{}")
    alone = prompt == "{}"
    ends = tokens.encode(tokenizer, [after], max_length=length, special=False)[0]
    rows = tokens.encode(
        tokenizer, [before + text for text in texts], max_length=length - len(ends), special=alone
    )
    found, counts = np.zeros((len(rows), length), np.int32), []
    for i, row in enumerate(rows):
        whole = np.concatenate([row, ends])
        found[i, : len(whole)] = whole
        counts.append(len(whole))
    return jnp.asarray(found), jnp.arange(length) < jnp.asarray(counts)[:, None]


def prototypes(model: Model, texts: Texts, classes: int) -> Float[Array, "c d"]:
    """Directions of class means from the mean of all classes, zeros for a class without texts."""
    member = jax.nn.one_hot(texts.label, classes)
    present = member.any(0)[:, None]
    means = (member.T @ vectors(model, texts)) / jnp.maximum(member.sum(0), 1)[:, None]
    return jnp.where(present, normalize(means - means.sum(0) / present.sum()), 0)


def embed(encoder: Encoder, params: Any, edits: HeadEdits | None, texts: Texts) -> Array:
    """Vectors of texts, of unit length where the encoder says so."""
    hidden = encoder.module.apply({"params": params}, texts.tokens, texts.mask, edits=edits)
    found = pool(hidden, texts.mask, encoder.pooling)
    return normalize(found) if encoder.unit else found


def logits(
    encoder: Encoder, vectors: Float[Array, "n d"], prototypes: Float[Array, "c d"]
) -> Float[Array, "n c"]:
    """Products of vectors and classes times the scale."""
    present = jnp.any(prototypes != 0, axis=-1)
    return jnp.where(present, encoder.scale * (vectors @ prototypes.T), ABSENT)


def task_loss(
    encoder: Encoder, params: Any, edits: HeadEdits | None, texts: Texts, prototypes: Array
) -> Float[Array, ""]:
    """The mean loss of a batch: cross-entropy, of texts whose class has a direction, or DPO.

    Answers are one token, so that log-probabilities differ as logits do: what they have in common
    leaves the margin of DPO.
    """
    found = logits(encoder, embed(encoder, params, edits, texts), prototypes)
    if encoder.beta:
        assert texts.margin is not None
        every = jnp.arange(len(found))
        pair = found[every, texts.label], found[every, texts.rejected]
        return dpo_loss(*pair, texts.margin, jnp.zeros_like(pair[0]), beta=encoder.beta).mean()
    each = optax.softmax_cross_entropy_with_integer_labels(found, texts.label)
    known = jnp.any(prototypes != 0, axis=-1)[texts.label]
    return jnp.sum(jnp.where(known, each, 0)) / jnp.maximum(known.sum(), 1)


def vectors(model: Model, texts: Texts, params: Any = None, edits: Any = None) -> Array:
    """Vectors of many texts, by other parameters or by edits where they are given."""
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
