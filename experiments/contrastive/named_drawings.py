"""Drawings and their names: read for two encoders, and what is measured on unseen ones.

Beside encoders stands what needs no training: BM25 by the words that similar drawings lend.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from experiments.common.evaluators import pixels
from experiments.common.images import open_images
from rml import data
from rml.data import tokens
from rml.ops import topk
from rml.retrieval import bm25_search

NEAREST = 10
"""Names among which a drawing's own is to be found, and drawings that lend their words."""


class Texts(NamedTuple):
    """Texts as tokens, and the number of each among the texts that differ."""

    tokens: np.ndarray
    mask: np.ndarray
    number: np.ndarray


class Drawings:
    """Drawings of a config with their names; nothing is opened before it is needed."""

    def __init__(self, config: Any):
        """Remembers the config, of which `data` and `tokens` are read."""
        self.config = config

    def names(self, part: str) -> list[str]:
        """The name of each drawing of a split."""
        options = self.config.data
        read = data.load_text(
            options.name, options[part], text_key=options.text, data_dir=options.data_dir
        )
        return [name.replace("-", " ") for name in read.texts]

    @cached_property
    def tokenizer(self) -> Any:
        """A tokenizer learned on the names of the training drawings."""
        return tokens.train_tokenizer(self.names("train"), vocabulary=self.config.tokens.vocabulary)

    def encoded(self, texts: Any) -> Texts:
        """Texts as tokens of one width."""
        width = self.config.tokens.max_length
        rows = tokens.encode(self.tokenizer, texts, max_length=width)
        return Texts(*tokens.pad(rows, width=width), np.unique(texts, return_inverse=True)[1])

    def pairs(self, part: str) -> data.Arrays:
        """Drawings and the tokens of their names."""
        source, texts = open_images(self.config, part, labelled=True), self.names(part)
        rows = self.encoded(texts)
        arrays = {"tokens": rows.tokens, "mask": rows.mask, "name": rows.number.astype(np.int32)}
        return data.Arrays(source.arrays() | arrays, name=source.name, split=source.split)

    def check(self) -> None:
        """Opens all that is measured on: what cannot be read fails before the training."""
        assert len(self.test[0]["image"])

    @cached_property
    def classes(self) -> list[str]:
        """The names of all classes."""
        return list(open_images(self.config, "test", labelled=True).class_names)

    @cached_property
    def test(self) -> tuple[dict[str, np.ndarray], Texts]:
        """The test pairs, and the names of all classes."""
        return self.pairs("test").arrays(), self.encoded(self.classes)


def judge(
    encoders: tuple[Any, Any], config: Any, drawings: Drawings, variables: Any
) -> dict[str, np.ndarray]:
    """Whether each test drawing is of the class whose name is nearest, and has a near name.

    "zero_shot" is the former; of the latter, "recall_at_10", a drawing's own name is to be among
    the nearest of all test names.
    """
    test, classes = drawings.test
    size = config.evaluation.batch_size
    images, texts = (partial(encode, variables) for encode in encoders)
    found = jnp.concatenate(
        [images(test["image"][i : i + size]) for i in range(0, len(test["image"]), size)]
    )
    named = topk(found, texts(classes.tokens, classes.mask), k=1)[1]
    # Every name once, in the order of their numbers: a drawing finds its name, not a drawing.
    first = np.unique(test["name"], return_index=True)[1]
    names = texts(test["tokens"][first], test["mask"][first])
    return right(test, named, topk(found, names, k=min(NEAREST, len(first)))[1])


def right(
    test: Mapping[str, np.ndarray], named: ArrayLike, nearest: ArrayLike
) -> dict[str, np.ndarray]:
    """What `judge` says of test drawings, from classes `[n, 1]` and numbers of names `[n, k]`."""
    label, name = test["label"][:, None], test["name"][:, None]
    return {
        "zero_shot": (np.asarray(named) == label).any(1),
        f"recall_at_{NEAREST}": (np.asarray(nearest) == name).any(1),
    }


def shares(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of test drawings of which each is true."""
    return {key: float(np.mean(own)) for key, own in found.items()}


def lent(images: ArrayLike, names: Sequence[str], seen: ArrayLike, *, k: int) -> list[str]:
    """For each image the words of its nearest seen images by pixels, nearest first.

    Args:
      images: Images, `[m, h, w, c]`.
      names: Names of the seen images, n of them.
      seen: Seen images, `[n, h, w, c]`.
      k: How many lend their names.
    """
    nearest = topk(pixels(images), pixels(seen), k=min(k, len(names)), metric="euclidean")[1]
    return [" ".join(names[at] for at in row) for row in np.asarray(nearest)]


def judge_words(config: Any, drawings: Drawings) -> dict[str, np.ndarray]:
    """What `judge` says of BM25 by the words that training drawings lend: nothing is trained."""
    test, names = drawings.test[0], np.array(drawings.names("test"))
    seen = open_images(config, "train").arrays()["image"]
    words = lent(test["image"], drawings.names("train"), seen, k=NEAREST)
    first = np.unique(test["name"], return_index=True)[1]
    _, named = bm25_search(drawings.classes, words, k=1)
    _, nearest = bm25_search(list(names[first]), words, k=min(NEAREST, len(first)))
    return right(test, named, nearest)
