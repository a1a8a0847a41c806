"""Texts that say the same: equal words, or nearly."""

import functools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


@functools.cache
def in_words() -> str:
    r"""Lists what words are made of, for a character class: `\w` and the marks that it lacks.

    Marks (Unicode's category M) are accents of their own and vowels of scripts such as Hindi's.
    """
    # Marks lie in the first two planes, but for the selectors of variants, which end the class.
    kinds = "".join(unicodedata.category(chr(point))[0] for point in range(0x20000))
    runs = (f"{chr(run.start())}-{chr(run.end() - 1)}" for run in re.finditer("M+", kinds))
    return rf"\w{''.join(runs)}\U000e0100-\U000e01ef"


def normalized(text: str) -> str:
    """Joins the words of a text in lower case by spaces; texts equal in this are duplicates."""
    word = _ASCII_WORD if text.isascii() else _word()
    return " ".join(word.findall(text.lower()))


def near_duplicates(
    texts: Sequence[str], *, similarity: float = 0.8, words: int = 3
) -> Bool[np.ndarray, " n"]:
    """Finds texts that nearly repeat an earlier one that is not itself a repetition.

    Exact, yet without comparing all pairs: two sets whose Jaccard similarity is at least t share
    one of the rarest `|x| - ceil(t |x|) + 1` members of each, so only texts that do are compared.

    Args:
      texts: Texts in order of preference, the first of several is kept.
      similarity: Least Jaccard similarity, in (0, 1], of the sets of `words` words in a row.
      words: Number of words in a row; a shorter text is one such row.

    Returns:
      True for each text to leave out. A text without words repeats nothing.

    Raises:
      ValueError: If the similarity is not in (0, 1] or `words` is not positive.

    Source:
        R. J. Bayardo et al., "Scaling up all pairs similarity search", WWW 2007; prefix filtering
        as in Chaudhuri et al., ICDE 2006.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity must be in (0, 1], got {similarity}")
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    sets = [_rows(text, words) for text in texts]
    counts = Counter(row for one in sets for row in one)
    by_rare_row: dict[str, list[int]] = defaultdict(list)
    repeated = np.zeros(len(texts), bool)
    for index, rows in enumerate(sets):
        shared = len(rows) - math.ceil(similarity * len(rows)) + 1
        rare = sorted(rows, key=lambda row: (counts[row], row))[:shared]
        candidates = {other for row in rare for other in by_rare_row.get(row, ())}
        for other in candidates:
            both = len(rows & sets[other])
            if both >= similarity * (len(rows) + len(sets[other]) - both):
                repeated[index] = True
                break
        else:
            for row in rare:
                by_rare_row[row].append(index)
    return repeated


# ASCII has no marks: most texts are split by a class that is short, which takes a third as long.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


@functools.cache
def _word() -> re.Pattern[str]:
    return re.compile(rf"\w[{in_words()}]*")


def _rows(text: str, words: int) -> set[str]:
    found = normalized(text).split()
    if not found:
        return set()
    return {" ".join(found[at : at + words]) for at in range(max(1, len(found) - words + 1))}
