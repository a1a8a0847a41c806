"""Words of texts that are compared; near duplicates are tested with `pydocs`."""

import re
import sys
import unicodedata

import pytest

from rml.data.duplicates import in_words, normalized


def test_words_of_different_vowel_signs_are_different():
    """In Hindi a vowel is a mark on its consonant, in "café" it may be an accent."""
    assert len({normalized(word) for word in ("की", "कि", "के", "क")}) == 4
    assert normalized("हिन्दी, भाषा!") == "हिन्दी भाषा"
    assert normalized("Cafe\u0301 x") == "cafe\u0301 x"
    assert normalized("I ❤\ufe0f you") == normalized("I ❤ you") == "i you"
    assert normalized("A b_c, (de)->f1!") == "a b_c de f1"


@pytest.mark.slow
def test_all_marks_are_in_words_and_nothing_else_is():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    marks = [one for one in every if unicodedata.category(one)[0] == "M"]
    found = re.findall(f"[{in_words()}]", every)
    assert sorted(found) == sorted([*re.findall(r"\w", every), *marks])
