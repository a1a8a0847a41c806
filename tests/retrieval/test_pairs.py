"""Batches of pairs, read back as texts."""

from dataclasses import replace

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


@pytest.mark.parametrize("parts", [1, 2])
def test_what_answers_a_query_or_is_that_query_is_known(collection, tokenizer, parts):
    whole = replace(collection, query_ids=["c", "q", "b"])  # pages that ask, of those searched
    known = {*PAIRS, (0, 2), (2, 1)}
    candidates = np.array([[1, 2], [0, 3], [3, 1], [2, 0]])
    options = dict(lengths=(8, 12), batch_size=4, seed=3)
    given = [
        next(iter(pair_batches(tokenizer, whole, candidates, part=part, parts=parts, **options)))
        for part in range(parts)
    ]
    batch = {key: np.concatenate([one[key] for one in given]) for key in given[0]}
    assert {key: (array.shape, array.dtype) for key, array in batch.items()} == {
        key: (spec.shape, spec.dtype)
        for key, spec in pair_spec(4, lengths=(8, 12), candidates=2).items()
    }
    pairs = [
        tuple(
            texts.index(tokenizer.decode(batch[key][row][: batch[f"{key}_length"][row]].tolist()))
            for key, texts in (("query", QUERIES), ("document", DOCUMENTS))
        )
        for row in range(4)
    ]
    assert sorted(pairs) == PAIRS
    for row, (query, _) in enumerate(pairs):
        for other, pair in enumerate(pairs):
            answers = (query, pair[1]) in known and other != row
            assert batch["document_known"][row, other] == answers
            drawn = candidates[PAIRS.index(pair)]
            expected = [(query, one) in known for one in drawn]
            assert batch["candidates_known"][row, other].tolist() == expected


def test_the_one_answer_of_a_query_is_known_where_it_is_drawn_for_another_row(
    collection, tokenizer
):
    qrels = Qrels(*np.array([(0, 0, 1), (1, 1, 1), (2, 3, 1)], np.int32).T)
    one = replace(collection, qrels=qrels)
    candidates = np.array([[1, 3], [3, 2], [0, 1]])  # most answer other rows, drawn at random
    batch = next(iter(pair_batches(
        tokenizer, one, candidates, lengths=(8, 12), batch_size=3, seed=0
    )))  # fmt: skip
    assert not batch["document_known"].any()
    rows = [
        DOCUMENTS.index(tokenizer.decode(one[:length].tolist()))
        for one, length in zip(batch["document"], batch["document_length"], strict=True)
    ]
    drawn = {0: candidates[0], 1: candidates[1], 3: candidates[2]}
    for row, own in enumerate(rows):
        expected = [(drawn[other] == own).tolist() for other in rows]
        assert batch["candidates_known"][row].tolist() == expected
    assert batch["candidates_known"].sum() == 5


def test_a_batch_that_processes_cannot_share_is_refused(collection, tokenizer):
    options = dict(lengths=(8, 8), batch_size=3, seed=0, parts=2)
    with pytest.raises(ValueError, match="batch_size=3 has no 2 equal parts"):
        pair_batches(tokenizer, collection, np.zeros((4, 2), int), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": 2, "parts": 2}, r"part=2 is not in 0\.\.1"),
        ({"part": -1, "parts": 2}, r"part=-1 is not in 0\.\.1"),
        ({"part": 1}, r"part=1 is not in 0\.\.0"),
        ({"parts": 2, "drop_remainder": False}, "2 parts need equal batches: drop_remainder must"),
    ],
)
def test_parts_that_are_not_of_equal_batches_are_refused(collection, tokenizer, options, message):
    given = dict(lengths=(8, 8), batch_size=2, seed=0, repeat=False) | options
    with pytest.raises(ValueError, match=message):
        pair_batches(tokenizer, collection, np.zeros((4, 2), int), **given)


def test_candidates_of_other_pairs_are_refused(collection, tokenizer):
    with pytest.raises(ValueError, match="4 pairs need as many rows of candidates, got 5"):
        pair_batches(
            tokenizer, collection, np.zeros((5, 2), int), lengths=(8, 8), batch_size=2, seed=0
        )
