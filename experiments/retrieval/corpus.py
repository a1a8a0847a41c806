"""What a retrieval run trains on and is judged on."""

from functools import cache
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from rml import data
from rml.data import text, tokens
from rml.data.source import Arrays
from rml.errors import UserError

VALIDATION, TEST = "validation", "test"


class Corpus:
    """Documents and collections of a config; nothing is opened before it is needed.

    `data.train` names the split whose documents are trained on, `data.validation` and `data.test`
    those that are searched, for each of `data.tasks`.
    """

    def __init__(self, config: Any):
        """Remembers the config, of which `data`, `tokens`, `train.batch_size` and `seed` are read.

        Args:
          config: The run's config.
        """
        self.config = config
        self.collection = cache(self._collection)

    def _collection(self, task: str, part: str) -> text.RetrievalData:
        """The collection of a task, "validation" or "test"."""
        options = self.config.data
        return text.load_retrieval(
            options.name, options[part], task=task, data_dir=options.data_dir
        )

    @cache  # noqa: B019 - a run has one corpus
    def training_texts(self) -> list[str]:
        """The documents that are trained on."""
        options = self.config.data
        return text.load_documents(options.name, options.train, data_dir=options.data_dir)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch, known without opening data."""
        size, length = self.config.train.batch_size, self.config.tokens.max_length
        return {
            "tokens": jax.ShapeDtypeStruct((size, length), jnp.int32),
            "length": jax.ShapeDtypeStruct((size,), jnp.int32),
        }

    def batches(self, tokenizer: Any, part: int, parts: int) -> grain.IterDataset:
        """Pieces of documents, without the tokens that begin and end a text."""
        arrays = pieces(tokenizer, self.training_texts(), length=self.config.tokens.max_length)
        source = Arrays(arrays, name=self.config.data.name, split=self.config.data.train)
        return data.batches(
            source, batch_size=self.config.train.batch_size, seed=self.config.seed,
            part=part, parts=parts,
        )  # fmt: skip


def pieces(tokenizer: Any, texts: list[str], *, length: int) -> dict[str, np.ndarray]:
    """Documents cut into pieces of `length` tokens.

    Args:
      tokenizer: Of the encoder.
      texts: Documents.
      length: Of a piece. What remains at the end of a document is a piece of its own if it has a
        quarter of that, or if it is all there is; pieces of one token, which have no two spans, are
        left out.

    Returns:
      `{"tokens": int32 [n, length], "length": int32 [n]}`.
    """
    cut = []
    for numbers in tokens.encode(tokenizer, texts, max_length=2**30, special=False):
        starts = range(0, max(len(numbers), 1), length)
        for start in starts:
            piece = numbers[start : start + length]
            if len(piece) >= (length / 4 if start else 2):
                cut.append(piece)
    if not cut:
        raise UserError(f"none of {len(texts)} documents has two tokens to make a pair of")
    filled, mask = tokens.pad(cut, width=length)
    return {"tokens": filled, "length": mask.sum(axis=1, dtype=np.int32)}
