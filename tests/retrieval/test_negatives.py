"""Negatives against a loop over queries in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.retrieval import hard_negatives, random_negatives


def test_random_negatives_are_all_other_documents_equally_often():
    document = np.array([0, 3, 4] * 4000)
    drawn = random_negatives(document, documents=5, count=2, rng=np.random.default_rng(0))
    assert drawn.shape == (12000, 2)
    for own in (0, 3, 4):
        counts = np.bincount(drawn[document == own].ravel(), minlength=5)
        assert counts[own] == 0
        # Five standard deviations of a binomial count of 8,000 draws.
        room = 5 * np.sqrt(8000 * 0.25 * 0.75)
        np.testing.assert_allclose(np.delete(counts, own), 2000, atol=room)
    with pytest.raises(ValueError, match="collection of 1"):
        random_negatives(np.array([0]), documents=1, count=2, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document": np.array([0, 3])}, "document has the number 3, expected 0 to 2"),
        ({"document": np.array([-1])}, "document has the number -1, expected 0 to 2"),
        ({"count": -1}, "count is -1, expected a number at least 0"),
        ({"count": 2.0}, "count is 2.0, expected a whole number"),
        ({"documents": 3.5}, "documents is 3.5, expected a whole number"),
    ],
)
def test_draws_that_make_no_sense_are_refused(unchecked, change, message):
    given = {"document": np.array([0, 2]), "documents": 3, "count": 2} | change
    with pytest.raises(ValueError, match=message):
        random_negatives(**given, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.array([1, 3])}, r"query \(2,\) as \[p\], document \(1,\) as \[p\]"),
        ({"document": np.array([1, 3])}, r"query \(1,\) as \[p\], document \(2,\) as \[p\]"),
        ({"documents": np.eye(3, dtype=np.float32)}, r"queries \(4, 4\) .* documents \(3, 3\)"),
        ({"count": -1}, "count is -1, expected a number at least 0"),
        ({"count": 1.0}, "count is 1.0, expected a whole number"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(unchecked, change, message):
    x = np.eye(4, dtype=np.float32)
    pairs = {"query": np.array([1]), "document": np.array([2])}
    with pytest.raises(ValueError, match=message):
        hard_negatives(**{"queries": x, "documents": x, **pairs, "count": 1} | change)


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), answers=st.integers(1, 4), count=st.integers(1, 5))
def test_hard_negatives_rank_highest_and_never_answer(seed, answers, count):
    rng = np.random.default_rng(seed)
    queries, documents = (rng.normal(size=(n, 6)).astype(np.float32) for n in (5, 12))
    judged = [(q, d) for q in range(5) for d in rng.choice(12, rng.integers(1, answers + 1), False)]
    query, document = np.array(judged, np.int32).T
    found = hard_negatives(queries, documents, query=query, document=document, count=count)
    scores = queries.astype(np.float64) @ documents.T.astype(np.float64)
    scores[query, document] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :count]
    np.testing.assert_array_equal(found, expected[query])


@pytest.mark.parametrize(("name", "number"), [("document", 4), ("document", -1), ("query", 4)])
def test_a_pair_of_what_is_not_there_is_refused(name, number):
    x = np.eye(4, dtype=np.float32)
    pairs = {"query": np.array([1, 3]), "document": np.array([1, 3])}
    pairs[name][1] = number
    with pytest.raises(ValueError, match=f"{name} has the number {number}, expected 0 to 3"):
        hard_negatives(x, x, **pairs, count=1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([0, 1, 2, 4], "own has the number 4, expected -1 to 3"),
        ([0, -2, 2, -1], "own has the number -2, expected -1 to 3"),
        ([0, 1, 2], "own has 3 documents for 4 queries"),
        ([0, 1, 2, 3, -1], "own has 5 documents for 4 queries"),
    ],
)
def test_queries_that_are_no_documents_of_the_collection_are_refused(own, message):
    x, pairs = np.eye(4, dtype=np.float32), {"query": np.array([1]), "document": np.array([3])}
    with pytest.raises(ValueError, match=message):
        hard_negatives(x, x, **pairs, count=1, own=np.array(own))


def test_a_score_that_is_no_number_is_never_a_negative():
    queries, documents = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    documents[2] = np.nan
    pairs = {"query": np.array([1, 3]), "document": np.array([1, 3])}
    assert hard_negatives(queries, documents, **pairs, count=1).tolist() == [[0], [0]]
    assert hard_negatives(queries, documents, **pairs, count=2).tolist() == [[0, 3], [0, 1]]
    with pytest.raises(ValueError, match="query 1 has fewer than 3 negatives with a finite score"):
        hard_negatives(queries, documents, **pairs, count=3)
    queries[3] = np.nan
    with pytest.raises(ValueError, match="query 3 has fewer than 1 negatives with a finite score"):
        hard_negatives(queries, documents, **pairs, count=1)


def test_a_place_where_nothing_was_found_is_no_answer_of_another_query():
    documents = np.array([[3], [2], [np.nan], [np.nan]], np.float32)
    pairs = {"query": np.array([0, 1]), "document": np.array([3, 1])}
    queries = np.ones((2, 1), np.float32)
    assert hard_negatives(queries, documents, **pairs, count=1).tolist() == [[0], [0]]
    with pytest.raises(ValueError, match="query 1 has fewer than 2 negatives with a finite score"):
        hard_negatives(queries, documents, **pairs, count=2)


def test_a_query_that_is_a_document_is_no_negative_of_its_own():
    documents = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    own = np.array([4, -1, 7])  # a page nearest to itself, one that is not searched, an answer
    queries = documents[[4, 5, 7]]
    query, document = np.array([[0, 2], [0, 8], [1, 3], [2, 7], [2, 0], [2, 1]]).T
    found = hard_negatives(
        queries, documents, query=query, document=document, count=5, own=own
    )  # fmt: skip
    left_out = {(0, 2), (0, 8), (0, 4), (1, 3), (2, 7), (2, 0), (2, 1)}
    for row, asking in zip(found.tolist(), query.tolist(), strict=True):
        ranked = np.argsort(-documents.astype(float) @ queries[asking]).tolist()
        assert row == [at for at in ranked if (asking, at) not in left_out][:5]
    with pytest.raises(ValueError, match="7 negatives were asked for, but of 9 documents 3"):
        hard_negatives(queries, documents, query=query, document=document, count=7, own=own)


def test_a_pair_that_is_given_twice_is_one_answer():
    vectors = np.eye(4, dtype=np.float32) + 0.1 * np.arange(4, dtype=np.float32)
    query, document = np.array([0, 0, 1, 0, 0]), np.array([0, 0, 2, 0, 3])
    found = hard_negatives(vectors, vectors, query=query, document=document, count=2)
    once = np.unique(np.stack([query, document], 1), axis=0).T
    wanted = hard_negatives(vectors, vectors, query=once[0], document=once[1], count=2)
    np.testing.assert_array_equal(found, wanted[[0, 0, 2, 0, 1]])
    with pytest.raises(ValueError, match="3 negatives were asked for, but of 4 documents 2 answer"):
        hard_negatives(vectors, vectors, query=query, document=document, count=3)


def test_too_few_documents_are_named():
    vectors = np.eye(3, dtype=np.float32)
    pairs = {"query": np.array([0, 0, 1]), "document": np.array([0, 1, 2])}
    assert hard_negatives(vectors, vectors, **pairs, count=1).tolist() == [[2], [2], [1]]
    with pytest.raises(ValueError, match="2 negatives were asked for, but of 3 documents 2 answer"):
        hard_negatives(vectors, vectors, **pairs, count=2)
