"""Batches of pairs, read back as texts."""

import numpy as np
import pytest

from rml.data import tokens
from rml.data.collections import Qrels, RetrievalData
from rml.retrieval import pair_batches, pair_spec

DOCUMENTS = ["red apple", "green pear", "blue plum", "yellow fig"]
QUERIES = ["apple", "pear", "fruit"]
JUDGED = [(0, 0, 1), (1, 1, 2), (1, 2, 0), (2, 2, 1), (2, 3, 1)]
"""Query, document and grade; a grade of 0 makes no pair."""
PAIRS = [(0, 0), (1, 1), (2, 2), (2, 3)]


@pytest.fixture(scope="module")
def collection():
    qrels = Qrels(*np.array(JUDGED, np.int32).T)
    return RetrievalData(DOCUMENTS, list("abcd"), QUERIES, list("xyz"), qrels)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train_tokenizer(DOCUMENTS + QUERIES, vocabulary=300)


def test_a_batch_holds_each_pairs_own_texts(collection, tokenizer):
    candidates = np.array([[1, 2], [0, 3], [0, 1], [0, 1]])
    batch = next(iter(pair_batches(
        tokenizer, collection, candidates, lengths=(8, 12), pad_id=9, batch_size=4, seed=0
    )))  # fmt: skip
    spec = pair_spec(4, lengths=(8, 12), candidates=2)
    assert batch.keys() == spec.keys()
    for name, array in batch.items():
        assert (array.shape, array.dtype) == (spec[name].shape, spec[name].dtype)

    def read(name, row):
        numbers, length = batch[name][row], batch[f"{name}_length"][row]
        assert (numbers[..., -1] == 9).all()  # these texts are shorter than their rows
        split = np.atleast_2d(numbers), np.atleast_1d(length)
        return [tokenizer.decode(one[:n].tolist()) for one, n in zip(*split, strict=True)]

    seen = set()
    for row in range(4):
        (query,), (document,) = read("query", row), read("document", row)
        pair = QUERIES.index(query), DOCUMENTS.index(document)
        expected = [DOCUMENTS[at] for at in candidates[PAIRS.index(pair)]]
        assert read("candidates", row) == expected
        seen.add(pair)
    assert seen == set(PAIRS)


def test_candidates_of_other_pairs_are_refused(collection, tokenizer):
    with pytest.raises(ValueError, match="4 pairs need as many rows of candidates, got 5"):
        pair_batches(
            tokenizer, collection, np.zeros((5, 2), int), lengths=(8, 8), batch_size=2, seed=0
        )
