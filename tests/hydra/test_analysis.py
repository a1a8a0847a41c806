"""Gate analysis on cases known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rml.hydra import FeatureFilter, analysis

GATES = jnp.array([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])


def test_sparsity_and_binariness():
    assert float(analysis.gate_sparsity(GATES)) == pytest.approx(7 / 12)
    assert float(analysis.gate_binariness(GATES)) == 1
    assert float(analysis.gate_binariness(jnp.full((2, 2), 0.5))) == 0
    assert float(analysis.gate_sparsity(GATES, threshold=0.0)) == 0


def test_statistics_are_those_of_all_rows():
    statistics = analysis.gate_statistics(jnp.stack([GATES, jnp.full((3, 4), 0.5)]))
    assert {name: float(value) for name, value in statistics.items()} == pytest.approx(
        {"gate_sparsity": 7 / 24, "gate_binariness": 0.5}
    )


def test_statistics_of_all_pairs_are_those_of_their_gates():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (5, 7, 6)), jnp.float32)

    def gates(first, second):  # unlike those of a filter, not the same for (i, j) and (j, i)
        return jax.nn.sigmoid(logits[first, second])

    found = jax.jit(lambda: analysis.pair_statistics(gates, 5))()
    expected = analysis.gate_statistics(gates(*analysis.all_pairs(5)))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )


def test_statistics_of_all_pairs_take_memory_as_classes_do_not_as_pairs():
    def size(classes):
        net = FeatureFilter(classes, features=16, embed=8, hidden=16)
        one = jnp.zeros(1, jnp.int32)
        variables = jax.eval_shape(net.init, jax.random.key(0), one, one)

        def statistics(variables):
            return analysis.pair_statistics(partial(net.apply, variables), classes)

        program = jax.jit(statistics).lower(variables).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert 0 < size(512) < 5 * size(128)


def test_overlap_of_binary_gates_is_the_jaccard_index():
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(analysis.gate_overlap(GATES), expected, atol=1e-6)


def test_overlap_of_soft_gates_is_min_over_max():
    gates = np.random.default_rng(0).uniform(size=(5, 8))
    pairs = gates[:, None], gates[None]
    expected = np.minimum(*pairs).sum(-1) / np.maximum(*pairs).sum(-1)
    np.testing.assert_allclose(analysis.gate_overlap(jnp.asarray(gates)), expected, rtol=1e-5)


def test_shared_openness():
    pairs = GATES[:, None] * GATES[None]  # a pair opens what both classes open
    np.testing.assert_allclose(
        analysis.shared_openness(pairs), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]], atol=1e-6
    )


def test_a_class_that_opens_no_gate_alone_shares_none():
    pairs = (GATES[:, None] * GATES[None]).at[1, 1].set(0)
    shared = analysis.shared_openness(pairs)
    np.testing.assert_allclose(shared, [[1, 0, 0], [0, 0, 0], [0, 0, 1]], atol=1e-6)


def test_all_pairs_come_row_by_row():
    first, second = analysis.all_pairs(3)
    np.testing.assert_array_equal(first, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(second, [0, 1, 2] * 3)


def test_confusion_is_the_symmetric_mean_probability():
    probabilities = jnp.array([[0.8, 0.2, 0], [0.6, 0.4, 0], [0.1, 0.9, 0]])
    confusion = analysis.confusion_similarity(probabilities, jnp.array([0, 0, 1]))
    np.testing.assert_allclose(confusion, [[0.7, 0.2, 0], [0.2, 0.9, 0], [0, 0, 0]], atol=1e-6)


def test_confusion_of_many_examples_is_counted_in_single_precision():
    probabilities = jnp.full((600, 2), 0.5, jnp.bfloat16)
    confusion = analysis.confusion_similarity(probabilities, jnp.zeros(600, int))
    assert confusion.dtype == jnp.float32
    np.testing.assert_allclose(confusion, [[0.5, 0.25], [0.25, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], "labels must lie between 0 and 2, got values from 0 to 3"),
        ([-1, 2], "labels must lie between 0 and 2, got values from -1 to 2"),
        ([1], r"probabilities \(2, 3\) as \[n, c\], labels \(1,\) as \[n\]"),
    ],
)
def test_confusion_needs_a_class_of_each_example(unchecked, labels, message):
    with pytest.raises(ValueError, match=message):
        analysis.confusion_similarity(jnp.ones((2, 3)) / 3, jnp.array(labels))


def test_relations_of_other_classes_are_not_compared(unchecked):
    for one, other in (((3, 3), (4, 4)), ((3, 4), (3, 4))):
        with pytest.raises(ValueError, match="shapes do not fit: one"):
            analysis.relation_correlation(np.ones(one), np.ones(other))


def test_relations_are_compared_by_the_ranks_of_different_classes():
    one = np.array([[9.0, 1, 2], [1, 9, 3], [2, 3, 9]])
    assert analysis.relation_correlation(one, jnp.asarray(np.exp(one))) == pytest.approx(1)
    assert analysis.relation_correlation(one, -one) == pytest.approx(-1)
    other = np.array([[0.0, 2, 1], [2, 0, 3], [1, 3, 0]])  # the ranks of two pairs exchanged
    assert analysis.relation_correlation(one, other) == pytest.approx(0.5)


def test_taxonomy_test_is_spearmans_and_permutes_classes():
    rng = np.random.default_rng(0)
    groups = list("aaaabbbbccc")
    together = np.equal.outer(groups, groups)
    noise = rng.normal(size=together.shape)
    similarity = 0.5 * together + (noise + noise.T) / 2
    found = analysis.taxonomy_test(similarity, groups, permutations=999, seed=1)
    pairs = np.triu_indices(len(groups), 1)
    expected = scipy.stats.spearmanr(similarity[pairs], together[pairs])[0]
    assert found.correlation == pytest.approx(expected)
    # The same by pairs, a permutation at a time.
    other = np.random.default_rng(2)
    drawn = []
    for _ in range(999):
        order = other.permutation(len(groups))
        drawn.append(np.corrcoef(_ranks(similarity)[pairs], together[np.ix_(order, order)][pairs]))
    share = np.mean(np.array(drawn)[:, 0, 1] >= expected)
    assert 0.002 < share < 0.2
    assert found.p == pytest.approx(share, abs=0.02)


def test_a_permuted_taxonomy_is_found_as_often_as_chance_says():
    groups = list(5 * "abcd")
    similarity = np.equal.outer(groups, groups).astype(float)
    tests = [analysis.taxonomy_test(similarity, groups, permutations=99, seed=s) for s in range(60)]
    assert all(one.correlation == pytest.approx(1) for one in tests)
    assert all(one.p == pytest.approx(0.01) for one in tests)
    nulls = np.array([one.null_p for one in tests])
    assert scipy.stats.kstest(nulls, "uniform").statistic < 0.3
    assert abs(np.mean([one.null_correlation for one in tests])) < 0.05


@pytest.mark.parametrize(("groups", "message"), [("aab", "3 groups of 4"), ("abcd", "no pair")])
def test_groups_without_pairs_to_compare_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        analysis.taxonomy_test(np.eye(4), list(groups), permutations=9, seed=0)
    with pytest.raises(ValueError, match="no pair"):
        analysis.taxonomy_test(np.eye(1), ["a"], permutations=9, seed=0)


def _ranks(similarity):
    ranks = np.zeros(similarity.shape)
    pairs = np.triu_indices(len(similarity), 1)
    ranks[pairs] = scipy.stats.rankdata(similarity[pairs])
    return ranks
