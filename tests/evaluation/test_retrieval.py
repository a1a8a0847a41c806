"""Retrieval metrics against trec_eval, by ir_measures, and worked by hand."""

from functools import partial

import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from rml.evaluation import (
    average_precision,
    make_qrels,
    ndcg,
    precision,
    rank,
    ranked_grades,
    recall,
    reciprocal_rank,
    retrieval_scores,
    success,
    tie_order,
)

TREC_EVAL = ir_measures.providers.registry["pytrec_eval"]
DOCUMENTS = 14  # names "d0" to "d13": "d9" comes after "d10"
NAMES = [f"d{i}" for i in range(DOCUMENTS)]


def trec_eval(judgements, lists, k, threshold, gain):
    """Values of each query, and the means, of trec_eval; lists are {document: score}."""
    gains = {g: 2**g - 1 for g in range(1, 6)} if gain == "exponential" else None
    measures = {
        "ndcg": nDCG(cutoff=k, gains=gains) if gains else nDCG @ k,
        "recall": R(rel=threshold) @ k,
        "precision": P(rel=threshold) @ k,
        "mrr": RR(rel=threshold),
        "map": AP(rel=threshold) @ k,
        "success": Success(rel=threshold) @ k,
    }
    qrels = {f"q{i}": {NAMES[d]: g for d, g in row.items()} for i, row in enumerate(judgements)}
    run = {f"q{i}": {NAMES[d]: s for d, s in row.items()} for i, row in enumerate(lists) if row}
    found = TREC_EVAL.calc(measures.values(), qrels, run)
    values = {(m.measure, m.query_id): m.value for m in found.per_query}
    each = {
        name: np.asarray([values[measure, f"q{i}"] for i in range(len(judgements))])
        for name, measure in measures.items()
    }
    # trec_eval has no cutoff for the reciprocal rank, which is that of the list cut off.
    each["mrr"] = np.where(each["mrr"] * k > 1 - 1e-6, each["mrr"], 0)
    means = {name: found.aggregated[m] for name, m in measures.items() if name != "mrr"}
    return each, means


def arrays(judgements, lists):
    """The same judgements and lists as arrays."""
    entries = [(q, d, g) for q, row in enumerate(judgements) for d, g in row.items()]
    qrels = make_qrels(*np.asarray(entries).T, num_queries=len(judgements))
    documents = np.full((len(lists), DOCUMENTS), -1)
    scores = np.zeros((len(lists), DOCUMENTS), np.float32)
    for q, row in enumerate(lists):
        documents[q, : len(row)], scores[q, : len(row)] = list(row), list(row.values())
    return qrels, jnp.asarray(documents), jnp.asarray(scores)


# A query with negative grades only: trec_eval itself does not end, if one is below -1.
judgement = st.dictionaries(st.integers(0, DOCUMENTS - 1), st.integers(-2, 4), min_size=1).filter(
    lambda row: max(row.values()) >= 0
)
# Few scores, so that most are equal; -0.0 equals 0.0.
result = st.dictionaries(st.integers(0, DOCUMENTS - 1), st.sampled_from([-0.0, 0.0, 1.5, -2.0]))


@pytest.mark.slow
@settings(max_examples=25)
@given(
    queries=st.lists(st.tuples(judgement, result), min_size=7, max_size=7),
    k=st.sampled_from([1, 5, DOCUMENTS, DOCUMENTS + 3]),
    threshold=st.integers(1, 3),
    gain=st.sampled_from(["linear", "exponential"]),
)
def test_equals_trec_eval(queries, k, threshold, gain):
    # One query with a judgement of every document keeps shapes, hence programs, the same.
    judgements, lists = zip((dict.fromkeys(range(DOCUMENTS), 1), {}), *queries, strict=True)
    expected, means = trec_eval(judgements, lists, k, threshold, gain)
    qrels, documents, scores = arrays(judgements, lists)
    ranked = rank(scores, tie_order(NAMES), documents=documents)
    ours = retrieval_scores(ranked, qrels, cutoffs=(k,), threshold=threshold, gain=gain)
    assert set(ours) == {f"{name}@{k}" for name in expected}
    for name, values in expected.items():
        np.testing.assert_allclose(ours[f"{name}@{k}"], values, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, mean in means.items():
        np.testing.assert_allclose(jnp.mean(ours[f"{name}@{k}"]), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["uncut", "msmarco"])
def test_equals_ir_measures_on_many_documents(measure):
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(300, dtype=np.float32), (20, 1)), axis=1)
    grades = np.where(rng.random((20, 300)) < 0.1, rng.integers(0, 4, (20, 300)), 0)
    names = [str(i) for i in range(300)]
    run = {str(q): dict(zip(names, map(float, scores[q]), strict=True)) for q in range(20)}
    truth = {str(q): dict(zip(names, map(int, grades[q]), strict=True)) for q in range(20)}
    qrels = make_qrels(*np.indices(grades.shape).reshape(2, -1), grades.ravel(), num_queries=20)
    found = ranked_grades(rank(jnp.asarray(scores), tie_order(names)), qrels)
    if measure == "msmarco":  # scores all differ: its order of equal ones is another
        pairs = {RR @ 3: reciprocal_rank(found, k=3)}
    else:
        pairs = {
            nDCG: ndcg(found, qrels.grades),
            AP: average_precision(found, qrels.grades),
            RR: reciprocal_rank(found),
            R @ 300: recall(found, qrels.grades),
        }
    expected = ir_measures.calc_aggregate(list(pairs), truth, run)
    for name, values in pairs.items():
        np.testing.assert_allclose(jnp.mean(values), expected[name], rtol=1e-5)


@pytest.mark.slow
def test_worked_by_hand():
    grades, judged = jnp.asarray([0, 3, 0, 1]), jnp.asarray([1, 3, 2, 0, 0])
    best = 3 + 2 / np.log2(3) + 1 / 2
    np.testing.assert_allclose(ndcg(grades, judged, k=2), 3 / np.log2(3) / (best - 0.5), rtol=1e-6)
    found = 3 / np.log2(3) + 1 / np.log2(5)
    np.testing.assert_allclose(ndcg(grades, judged), found / best, rtol=1e-6)
    small = grades.astype(jnp.uint8), judged.astype(jnp.uint8)  # which has no negative numbers
    np.testing.assert_allclose(ndcg(*small), found / best, rtol=1e-6)
    best, found = 7 + 3 / np.log2(3) + 1 / 2, 7 / np.log2(3) + 1 / np.log2(5)
    np.testing.assert_allclose(ndcg(grades, judged, gain="exponential"), found / best, rtol=1e-6)
    np.testing.assert_allclose(average_precision(grades, judged), (1 / 2 + 2 / 4) / 3, rtol=1e-6)
    np.testing.assert_allclose(average_precision(grades, judged, k=3), 1 / 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(recall(grades, judged, k=2), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(recall(grades, judged, k=9, threshold=2), 1 / 2, rtol=1e-6)
    assert float(precision(grades, k=8)) == 2 / 8
    assert float(reciprocal_rank(grades)) == 1 / 2
    assert [float(reciprocal_rank(grades, k=1)), float(success(grades, k=1))] == [0, 0]
    assert float(success(grades, k=2)) == 1


def test_exponential_gains_beyond_the_range_have_their_quotient():
    grades = jnp.asarray([[0, 300, 298, 0], [0, 3, 1, 0], [0, 120, 118, 0]])
    found = ndcg(grades, grades, gain="exponential")
    powers = np.exp2([2.0, 0.0])  # of large grades the 1 is nothing
    wanted = [powers @ (1 / np.log2([3, 4])) / (powers @ (1 / np.log2([2, 3]))),
              (7 / np.log2(3) + 1 / 2) / (7 + 1 / np.log2(3))]  # fmt: skip
    np.testing.assert_allclose(found, [*wanted, wanted[0]], rtol=1e-6)
    first = ndcg(grades, grades, k=1, gain="exponential")
    np.testing.assert_array_equal(first, 0)  # a grade of 0 has no gain beside any other


def few_qrels(query, document, grade, num_queries):
    return make_qrels(*map(np.asarray, (query, document, grade)), num_queries=num_queries)


@pytest.mark.slow
@pytest.mark.parametrize("judged", [[0, 0], [-3, -1]])
def test_without_a_relevant_document_every_metric_is_zero(judged):
    qrels = few_qrels([0, 0], [4, 2], judged, num_queries=1)
    for name, value in retrieval_scores(jnp.asarray([[2, 4]]), qrels).items():
        np.testing.assert_array_equal(value, 0, err_msg=name)


def test_equal_scores_rank_the_last_name_first():
    order = tie_order(["10", "9", "é", "z"])  # bytes: é is after z
    np.testing.assert_array_equal(order, [3, 2, 0, 1])
    scores = jnp.asarray([[0.0, -0.0, 0.0, 0.0], [1, 1, jnp.nan, -jnp.inf]])
    np.testing.assert_array_equal(rank(scores, order), [[2, 3, 1, 0], [1, 0, 2, 3]])
    np.testing.assert_array_equal(rank(scores, order, k=2), [[2, 3], [1, 0]])
    documents = jnp.asarray([[-1, 3, 0, -1], [1, -1, 2, 3]])
    np.testing.assert_array_equal(
        rank(scores, order, documents=documents), [[3, 0, -1, -1], [1, 2, 3, -1]]
    )


@pytest.mark.slow
def test_scores_are_compared_in_float32_as_trec_eval_does():
    # 1 + 1e-12 is 1 in float32, and the later name wins.
    found = TREC_EVAL.calc([RR], {"q": {"a": 1}}, {"q": {"a": 1 + 1e-12, "b": 1.0}})
    ranked = rank(jnp.asarray(np.asarray([[1 + 1e-12, 1.0]], np.float32)), tie_order(["a", "b"]))
    qrels = few_qrels([0], [0], [1], num_queries=1)
    assert found.aggregated[RR] == float(reciprocal_rank(ranked_grades(ranked, qrels))[0]) == 0.5


@pytest.mark.slow
def test_works_under_jit_and_vmap():
    qrels = few_qrels([0, 0, 1, 1], [3, 1, 0, 2], [1, 2, 0, 1], num_queries=2)
    ranked = jnp.asarray([[1, 0, 3], [2, -1, -1]])
    expected = retrieval_scores(ranked, qrels, cutoffs=(2,))
    inside = jax.jit(partial(retrieval_scores, cutoffs=(2,)))(ranked, qrels)
    grades = ranked_grades(ranked, qrels)
    np.testing.assert_array_equal(grades, [[2, 0, 1], [1, 0, 0]])
    mapped = jax.vmap(partial(ndcg, k=2))(grades, qrels.grades)
    np.testing.assert_allclose(mapped, expected["ndcg@2"], rtol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(inside[name], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (([0, 1], [0, 0], [1]), r"got shapes \(2,\), \(2,\) and \(1,\)"),
        (([0, 2], [0, 0], [1, 1]), "query must lie between 0 and 1, got values from 0 to 2"),
        (([0, 1], [0, -1], [1, 1]), "document must lie between 0 .* got values from -1 to 0"),
        (([0, 0], [0, 1], [1, 1]), r"got none for \[1\] of 2 queries"),
        (([0, 1, 0], [5, 5, 5], [1, 1, 2]), "two judgements of document 5 for query 0"),
    ],
)
def test_judgements_that_make_no_sense_are_named(unchecked, entries, message):
    with pytest.raises(ValueError, match=message):
        few_qrels(*entries, num_queries=2)


def test_errors_name_value_and_shape(unchecked):
    grades, order = jnp.ones((2, 3), int), jnp.arange(3)
    qrels = few_qrels([0], [0], [1], num_queries=1)
    for metric in (precision, success, reciprocal_rank):
        with pytest.raises(ValueError, match="k must be at least 1 or None, got 0"):
            metric(grades, k=0)
        with pytest.raises(ValueError, match="threshold must be at least 1, got 0"):
            metric(grades, k=1, threshold=0)
    with pytest.raises(ValueError, match="got 'log'"):
        ndcg(grades, grades, gain="log")
    with pytest.raises(ValueError, match="different, got 2 with 1 names"):
        tie_order(["a", "a"])
    with pytest.raises(ValueError, match=r"a column for each, got shapes \(2, 4\) and \(3,\)"):
        rank(jnp.ones((2, 4)), order)
    with pytest.raises(ValueError, match=r"same shape, got \(2, 3\) and \(2, 4\)"):
        rank(jnp.ones((2, 4)), order, documents=grades)
    with pytest.raises(ValueError, match="k must be at least 1 or None, got -1"):
        rank(jnp.ones((2, 3)), order, k=-1)
    with pytest.raises(ValueError, match=r"same queries, got shapes \(2, 3\) and \(1, 1\)"):
        ranked_grades(grades, qrels)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1), (2, 1, 3)])
def test_judgements_are_of_the_same_queries(unchecked, shape):
    grades, judged = jnp.ones((2, 3), int), jnp.ones(shape, int)
    for metric in (recall, average_precision, ndcg):
        with pytest.raises(ValueError, match=r"same queries, got shapes \(2, 3\) and \("):
            metric(grades, judged)
