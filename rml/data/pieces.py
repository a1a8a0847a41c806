"""Documents cut into pieces of tokens, to train on without labels."""

from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from rml.data import tokens
from rml.data.errors import DataError
from rml.data.pipeline import batches
from rml.data.source import Arrays


def pieces(tokenizer: Any, texts: Sequence[str], *, length: int) -> dict[str, np.ndarray]:
    """Cuts documents into pieces of `length` tokens, without those that begin and end a text.

    What remains at the end of a document is a piece of its own if it has a quarter of that length,
    or if it is all there is. Pieces of one token, which have no two spans, are left out.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      texts: Documents.
      length: Number of tokens of a piece.

    Returns:
      `{"tokens": int32 [n, length], "length": int32 [n]}`.

    Raises:
      DataError: If no document has two tokens, or `length` is less than 2.
    """
    if length < 2:
        raise DataError(f"length={length} holds no pair of tokens, expected at least 2")
    cut = []
    for numbers in tokens.encode(tokenizer, texts, max_length=2**30, special=False):
        for start in range(0, len(numbers), length):
            piece = numbers[start : start + length]
            if len(piece) >= max(2, length / 4 if start else 2):
                cut.append(piece)
    if not cut:
        raise DataError(f"none of {len(texts)} documents has two tokens to make a pair of")
    filled, mask = tokens.pad(cut, width=length)
    return {"tokens": filled, "length": mask.sum(axis=1, dtype=np.int32)}


def piece_batches(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    length: int,
    name: str = "pieces",
    split: str = "all",
    **options: Any,
) -> grain.IterDataset:
    """Makes batches of the `pieces` of documents.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      texts: Documents.
      length: Number of tokens of a piece.
      name: Name of the documents, for messages.
      split: Name of their split, for messages.
      **options: Further arguments of `rml.data.batches`.

    Returns:
      Batches of the shapes of `piece_spec`.

    Raises:
      DataError: As `pieces` and `rml.data.batches`.
    """
    arrays = pieces(tokenizer, texts, length=length)
    return batches(Arrays(arrays, name=name, split=split), **options)


def piece_spec(batch_size: int, *, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of pieces, known without opening data."""
    shapes = {"tokens": (batch_size, length), "length": (batch_size,)}
    return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
