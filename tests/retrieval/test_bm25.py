"""BM25 against its formula written out, and the words that it sees."""

import math
import re
import sys

import numpy as np
import pytest

from rml.errors import UserError, install
from rml.retrieval import bm25_search

DOCUMENTS = [
    "The cat sat on the mat, and the cat slept",
    "A dog chased the cat",
    "dogs and cats are animals",
    "mat mat mat",
    "parse_json reads what HTTPServer sends to openFile",
    "",
]


def by_formula(query: str, k1: float, b: float) -> np.ndarray:
    from bm25s.stopwords import STOPWORDS_EN

    def words(text):
        return [w for w in re.findall(r"\w\w+", text.lower()) if w not in STOPWORDS_EN]

    texts = [words(text) for text in DOCUMENTS]
    mean = sum(map(len, texts)) / len(texts)
    scores = np.zeros(len(texts))
    for word in words(query):
        holding = sum(word in text for text in texts)
        weight = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, text in enumerate(texts):
            f = text.count(word)
            scores[i] += weight * f / (f + k1 * (1 - b + b * len(text) / mean))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_equals_the_formula(k1, b):
    queries = ["cat on a mat", "a dog and a cat", "mat mat"]
    scores, rows = bm25_search(DOCUMENTS, queries, k=6, k1=k1, b=b)
    for query, score, row in zip(queries, scores, rows, strict=True):
        expected = by_formula(query, k1, b)
        found = np.count_nonzero(expected)
        np.testing.assert_allclose(score[:found], -np.sort(-expected)[:found], rtol=1e-5)
        np.testing.assert_array_equal(row[:found], np.argsort(-expected, kind="stable")[:found])
        np.testing.assert_array_equal(row[found:], -1)
        np.testing.assert_array_equal(score[found:], -np.inf)


def test_nothing_is_found_for_words_that_no_document_has():
    scores, rows = bm25_search(DOCUMENTS, ["zebra", "", "the and of"], k=2)
    np.testing.assert_array_equal(rows, -1)
    np.testing.assert_array_equal(scores, -np.inf)


def test_equal_scores_go_to_the_lower_document():
    _, rows = bm25_search(["one two"] * 50, ["two"], k=20)
    np.testing.assert_array_equal(rows[0], np.arange(20))


def test_identifiers_are_split_only_when_asked():
    queries = ["json", "server", "http", "open", "parse_json"]
    whole = bm25_search(DOCUMENTS, queries, k=1)[1][:, 0]
    np.testing.assert_array_equal(whole, [-1, -1, -1, -1, 4])
    split = bm25_search(DOCUMENTS, queries, k=1, split_identifiers=True)[1][:, 0]
    np.testing.assert_array_equal(split, 4)


def test_errors_say_what_was_expected(monkeypatch, unchecked):
    with pytest.raises(UserError, match="k must be between 1 and the 6 documents, got 7"):
        bm25_search(DOCUMENTS, ["cat"], k=7)
    with pytest.raises(ValueError, match=r"k is 2\.0, expected a whole number"):
        bm25_search(DOCUMENTS, ["cat"], k=2.0)
    for wrong in ({"k1": -0.1}, {"k1": np.nan}, {"k1": np.inf}, {"b": -0.1}, {"b": 1.1}):
        with pytest.raises(UserError, match=r"k1 is .* and b is .*, expected at least 0 and from"):
            bm25_search(DOCUMENTS, ["cat"], k=1, **wrong)
    with pytest.raises(UserError, match="no word in 2 documents"):
        bm25_search(["the", ""], ["cat"], k=1)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UserError, match=re.escape(install("retrieval"))):
        bm25_search(DOCUMENTS, ["cat"], k=1)
