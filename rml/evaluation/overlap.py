"""How much of a text that a model wrote stands in the text it should have written."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Rouge(NamedTuple):
    """Overlap of n-grams, text by text.

    Attributes:
      precision: Share of the written n-grams that the reference has [m].
      recall: Share of the reference's n-grams that are written [m].
      f1: Their harmonic mean [m].
    """

    precision: Float[np.ndarray, " m"]
    recall: Float[np.ndarray, " m"]
    f1: Float[np.ndarray, " m"]


def rouge_n(written: Sequence[str], references: Sequence[str], *, n: int = 2) -> Rouge:
    """Computes ROUGE-N, the overlap of runs of n words.

    Words are letters a to z and digits in lower case, whatever else stands between them; they are
    not stemmed. A run counts as often as both texts have it. Where a text has fewer than n words,
    all values are 0.

    Args:
      written: Texts that a model wrote.
      references: Texts that it should have written, one for each.
      n: Words of a run.

    Returns:
      Precision, recall and F1 of every text.

    Raises:
      ValueError: There are not as many references, or n is below 1.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, ACL workshop 2004,
    section 2, with one reference; words as the package rouge_score splits them.
    """
    _same_number(written, references)
    if n < 1:
        raise ValueError(f"n is {n}, expected at least one word")
    runs = [[_runs(part, n) for part in pair] for pair in zip(written, references, strict=True)]
    both = np.asarray([(own & wanted).total() for own, wanted in runs], np.float64)
    own_total, wanted_total = (
        np.asarray([[part.total() for part in pair] for pair in runs], np.float64).reshape(-1, 2).T
    )
    precision, recall = _share(both, own_total), _share(both, wanted_total)
    f1 = _share(2 * precision * recall, precision + recall)
    return Rouge(precision, recall, f1)


def same_first_line(written: Sequence[str], references: Sequence[str]) -> Bool[np.ndarray, " m"]:
    """Says of every text whether its first line is that of its reference, without outer blanks.

    Args:
      written: Texts that a model wrote.
      references: Texts that it should have written, one for each.

    Returns:
      Whether the first lines that are not blank are equal [m]; two texts without any are.

    Raises:
      ValueError: There are not as many references.
    """
    _same_number(written, references)
    pairs = zip(written, references, strict=True)
    return np.asarray([_first_line(own) == _first_line(wanted) for own, wanted in pairs], bool)


def _same_number(written: Sequence[str], references: Sequence[str]) -> None:
    if len(written) != len(references):
        raise ValueError(f"{len(written)} texts, {len(references)} references, expected as many")


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole, and 0 where the whole is."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _runs(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = re.findall("[a-z0-9]+", text.lower())
    return Counter(zip(*(words[at:] for at in range(n)), strict=False))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
