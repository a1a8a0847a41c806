"""Known-item search with vectors that say what should be found."""

import numpy as np
import pytest

from rml.retrieval import known_items

TEXTS = [f"w{i} " * 4 + f"rest{i} " * 36 for i in range(8)]
AXES = np.eye(8, dtype=np.float32)


def number(text: str) -> int:
    return int(text.split()[0].removeprefix("w"))


def search(turned: int, **options):
    """Vectors of queries are those of their documents, or of the next where turned."""
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.stack([AXES[(number(text) + (number(text) < turned)) % 8] for text in texts])

    options = {"sample": 100, "rng": np.random.default_rng(0)} | options
    return known_items(encode, TEXTS, AXES, **options), asked


def test_shares_count_the_documents_that_are_found():
    found, asked = search(turned=3, k=1)
    assert (found.first, found.among) == (5 / 8, 5 / 8)
    np.testing.assert_array_equal(found.hits, [False] * 3 + [True] * 5)
    np.testing.assert_array_equal(found.own, [0, 0, 0, 1, 1, 1, 1, 1])
    assert [text.split()[0] for text in asked] == [f"w{i}" for i in range(8)]
    found, _ = search(turned=3, k=10)
    assert (found.first, found.among) == (5 / 8, 1)
    np.testing.assert_array_equal(found.other, [1, 1, 1, 0, 0, 0, 0, 0])


def test_another_document_is_seen_where_one_is_found():
    for turned in (0, 3):
        one, two = search(turned=turned, k=1)[0], search(turned=turned, k=2)[0]
        np.testing.assert_array_equal(one.other, two.other)
        assert np.isfinite(one.other).all()
    assert search(turned=3, k=1)[0].among == 5 / 8


def test_a_query_has_an_eighth_of_the_words_or_four():
    _, asked = search(turned=0)
    assert [len(text.split()) for text in asked] == [5] * 8
    _, asked = search(turned=0, words=lambda count: count // 4)
    assert [len(text.split()) for text in asked] == [10] * 8


def test_a_sample_is_drawn_without_repetition():
    found, asked = search(turned=0, sample=3)
    assert len({number(text) for text in asked}) == len(found.own) == 3


def test_one_document_has_no_other():
    found = known_items(lambda texts: AXES[:1], TEXTS[:1], AXES[:1], sample=5,
                        rng=np.random.default_rng(0))  # fmt: skip
    assert found.first == 1
    np.testing.assert_array_equal(found.other, -np.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": 0}, "sample is 0, expected a number at least 1"),
        ({"sample": 2.0}, "sample is 2.0, expected a whole number"),
        ({"k": -1}, "k is -1, expected a number at least 1"),
        ({"k": 2.0}, "k is 2.0, expected a whole number"),
        ({"vectors": np.eye(9, dtype=np.float32)}, r"vectors \(9, 9\) as \[8, d\]"),
    ],
)
def test_what_cannot_be_asked_is_refused(unchecked, change, message):
    given = {"texts": TEXTS, "vectors": AXES, "sample": 3, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=message):
        known_items(lambda texts: AXES[: len(texts)], **given | change)
