"""Documents that are really long, as arrays of tokens of one length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rml.data.errors import DataError
from rml.data.tokens import encode


def long_documents(
    tokenizer: Any, texts: Sequence[str], *, length: int, most: int | None = None
) -> Int[np.ndarray, "n length"]:
    """Reads the beginnings of all documents that are long enough, in their order.

    Args:
      tokenizer: A `tokenizers.Tokenizer`; special tokens are not added.
      texts: Documents, such as those of `rml.data.load_documents`.
      length: Number of tokens of each beginning; shorter documents are left out.
      most: Number of documents to find; all if not given.

    Returns:
      Token numbers, int32.

    Raises:
      DataError: If there are fewer than `most`, or none.
    """
    found: list[np.ndarray] = []
    longest = 0
    for text in texts:
        (tokens,) = encode(tokenizer, [text], max_length=length, special=False)
        longest = max(longest, len(tokens))
        if len(tokens) == length:
            found.append(tokens)
            if len(found) == most:
                break
    if len(found) < (most or 1):
        raise DataError(
            f"{len(found)} of {len(texts)} documents have {length} tokens, expected at least "
            f"{most or 1}; the longest has {longest}"
        )
    return np.stack(found)
