"""Paired tests against SciPy, and their false alarms where nothing differs."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rml.evaluation import (
    compare_systems,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_randomization,
    wilcoxon,
)


def scores(seed: int, n: int, gap: float) -> tuple[jax.Array, jax.Array]:
    """Scores of two systems on queries that are hard or easy for both."""
    hardness, first, second = jax.random.normal(jax.random.key(seed), (3, n))
    return hardness + 0.5 * first + gap, hardness + 0.5 * second


@pytest.mark.slow
def test_bootstrap_equals_scipy():
    first, second = scores(0, 80, 0.15)
    found = paired_bootstrap(first, second, key=jax.random.key(1), resamples=20_000, level=0.9)
    d = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    expected = stats.bootstrap(
        (d,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=0
    )
    np.testing.assert_allclose(found.difference, d.mean(), rtol=1e-5)
    # Ends of an interval vary by about 0.015 standard errors at 20,000 resamples, in both.
    room = 5 * np.sqrt(2) * 0.015 * expected.standard_error
    np.testing.assert_allclose(found.low, expected.confidence_interval.low, atol=room)
    np.testing.assert_allclose(found.high, expected.confidence_interval.high, atol=room)
    # The bootstrap distribution of t is near Student's, to which it tends.
    np.testing.assert_allclose(found.p_value, stats.ttest_rel(first, second).pvalue, atol=0.015)


@pytest.mark.slow
def test_bootstrap_is_of_the_studentised_mean():
    """Of skewed differences, of which the means alone give another answer."""
    d = np.array([0.02, 0.03, 0.01, 0.05, 0.02, 0.9, 0.04, 0.03, 0.6, 0.02])
    rng = np.random.default_rng(0)
    drawn = rng.choice(d - d.mean(), (40_000, len(d)))
    spread = drawn.std(1)
    assert spread.min() > 0
    student = np.mean(np.abs(drawn.mean(1)) / spread >= d.mean() / d.std())
    plain = np.mean(np.abs(drawn.mean(1)) >= d.mean())
    assert abs(student - plain) > 0.05
    found = paired_bootstrap(
        jnp.asarray(d, jnp.float32), jnp.zeros(len(d)), key=jax.random.key(1), resamples=4_000
    )
    assert abs(float(found.p_value) - student) < 5 * np.sqrt(0.25 / 4_000)


@pytest.mark.slow
def test_randomization_equals_scipy():
    first, second = scores(2, 60, 0.15)
    resamples = 20_000
    p = float(paired_randomization(first, second, key=jax.random.key(0), resamples=resamples))
    d = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    expected = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=resamples, rng=0
    ).pvalue
    assert 0.01 < expected < 0.99
    assert abs(p - expected) < 5 * np.sqrt(2 * expected * (1 - expected) / resamples)
    np.testing.assert_allclose(p, stats.ttest_rel(first, second).pvalue, atol=0.015)


def test_randomization_equals_all_exchanges_of_a_few_queries():
    # Differences of few values: most sums are equal to others, and equal ones count.
    d = np.asarray([0.1, 0.1, -0.1, 0.2, 0.3, 0.1, 0.0, 0.2])
    exact = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    p = paired_randomization(
        jnp.asarray(d, jnp.float32), jnp.zeros(8), key=jax.random.key(0), resamples=50_000
    )
    assert abs(float(p) - exact) < 5 * np.sqrt(exact * (1 - exact) / 50_000)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.normal(key, (40,)),
        # Like differences of success@k.
        lambda key: jax.random.randint(key, (40,), -1, 2).astype(jnp.float32),
    ],
    ids=["normal", "discrete"],
)
def test_false_alarms_are_as_rare_as_the_level(draw):
    trials, alpha = 1000, 0.05

    def trial(key):
        data, first, second = jax.random.split(key, 3)
        d, zero = draw(data), jnp.zeros(40)
        options = {"resamples": 400, "block": 400}
        boot = paired_bootstrap(d, zero, key=first, **options)
        exchange = paired_randomization(d, zero, key=second, **options)
        return boot.p_value, exchange, (boot.low <= 0) & (boot.high >= 0)

    keys = jax.random.split(jax.random.key(3), trials)
    boot, exchange, covered = jax.jit(lambda keys: jax.lax.map(trial, keys))(keys)
    # The exchange test is exact: at most alpha; on few values, less.
    alarms = int(jnp.sum(exchange <= alpha))
    assert stats.binomtest(alarms, trials, alpha, alternative="greater").pvalue > 1e-3
    assert alarms > 0.4 * alpha * trials
    # The bootstrap tends to alpha, its percentile interval from above: 40 queries miss 6.4%.
    for errors, most in ((jnp.sum(boot <= alpha), 1.1), (jnp.sum(~covered), 1.3)):
        low, high = stats.binom.ppf([1e-3, 1 - 1e-3], trials, [0.9 * alpha, most * alpha])
        assert low <= int(errors) <= high


@pytest.mark.slow
def test_a_real_difference_is_found():
    first, second = scores(5, 200, 0.3)
    found = paired_bootstrap(first, second, key=jax.random.key(0), resamples=1000)
    assert 0 < found.low < found.difference < found.high
    np.testing.assert_allclose(found.p_value, 1 / 1001)
    p = paired_randomization(first, second, key=jax.random.key(0), resamples=1000)
    np.testing.assert_allclose(p, 1 / 1001)


@pytest.mark.slow
@pytest.mark.parametrize(("gap", "expected"), [(0.0, 1.0), (0.25, 1 / 501)])
def test_equal_differences(gap, expected):
    """Nothing to resample: no difference has p 1; the same one everywhere has the least p."""
    first = jnp.full(30, 0.1 + gap)
    found = paired_bootstrap(first, jnp.full(30, 0.1), key=jax.random.key(0), resamples=500)
    np.testing.assert_allclose(found.p_value, expected, rtol=1e-6)
    np.testing.assert_allclose([found.low, found.high], gap, rtol=1e-6)
    p = paired_randomization(first, jnp.full(30, 0.1), key=jax.random.key(0), resamples=500)
    np.testing.assert_allclose(p, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_block_does_not_change_the_result_and_the_order_changes_the_sign():
    first, second = scores(0, 20, 0.2)
    run = partial(paired_bootstrap, key=jax.random.key(0), resamples=300)
    one, other = run(first, second), run(first, second, block=60)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    back = run(second, first)
    np.testing.assert_allclose([back.low, back.high], [-one.high, -one.low], rtol=1e-5)
    np.testing.assert_allclose(back.p_value, one.p_value, rtol=1e-6)
    randomization = partial(paired_randomization, key=jax.random.key(0), resamples=300)
    assert float(randomization(first, second)) == float(randomization(second, first, block=60))


@pytest.mark.slow
def test_memory_is_bounded_by_the_block():
    def temporary_bytes(resamples: int, block: int) -> int:
        run = partial(paired_bootstrap, resamples=resamples, block=block)
        spec = jax.ShapeDtypeStruct((2000,), jnp.float32)
        lowered = jax.jit(lambda a, b, key: run(a, b, key=key)).lower(spec, spec, jax.random.key(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(10_000, 16) < 4 * 10_000 * 2000 / 20
    assert temporary_bytes(10_000, 256) > 4 * temporary_bytes(10_000, 16) / 2


adjust = jax.jit(holm)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=1, max_size=6))
def test_holm_equals_its_definition(values):
    order = np.argsort(values, kind="stable")
    expected, largest = np.zeros(len(values)), 0.0
    for place, i in enumerate(order):
        largest = max(largest, (len(values) - place) * values[i])
        expected[i] = min(1, largest)
    np.testing.assert_allclose(adjust(np.float32(values)), expected, rtol=1e-6)


def test_holm_worked_by_hand():
    adjusted = holm(jnp.asarray([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02], rtol=1e-6)
    np.testing.assert_array_equal(holm([0.01, 0.04, 0.03, 0.005]), adjusted)


def test_wilcoxon_counts_all_signs_of_the_ranks():
    first = jnp.asarray([0.1, 0.9, 0.4, 1.3, -0.2, 2.0, 0.5])
    second = jnp.asarray([0.0, 0.6, 0.6, 0.6, 0.2, 1.5, 0.5])  # the last does not differ
    found = wilcoxon(first, second)
    signs = np.array([1, 1, -1, 1, -1, 1])
    ranks = np.array([1, 3, 2, 6, 4, 5])
    statistic = min(ranks[signs > 0].sum(), ranks[signs < 0].sum())
    subsets = np.array(list(itertools.product([0, 1], repeat=6))) @ ranks
    p = np.mean(np.minimum(subsets, 21 - subsets) <= statistic)
    assert found == pytest.approx((statistic, p))
    assert wilcoxon(second, first) == found
    many = scores(1, 80, 0.1)
    assert wilcoxon(*many) == pytest.approx(
        tuple(stats.wilcoxon(*(np.asarray(x, np.float64) for x in many)))
    )
    assert wilcoxon(first, first) == (0.0, 1.0)


def test_wilcoxons_ties_are_differences_equal_up_to_rounding():
    first, second = jnp.asarray([0.3, 0.8, 0.5, 0.9, 0.7]), jnp.asarray([0.2, 0.9, 0.4, 0.5, 0.7])
    whole = wilcoxon(jnp.round(10 * first), jnp.round(10 * second))
    assert whole == pytest.approx(tuple(stats.wilcoxon([1, -1, 1, 4, 0])))
    assert wilcoxon(first, second) == wilcoxon(100 * first, 100 * second) == whole
    apart = wilcoxon(first.at[0].add(1e-5), second)  # a difference, though a small one
    assert apart == pytest.approx(tuple(stats.wilcoxon([1.1, -1, 1, 4, 0])))


def test_wilcoxons_ties_are_those_of_the_precision_of_measurements():
    differences = np.array([0.1, 0.1, -0.1, 0.1, 0.1, -0.1, 0.1])
    second = np.array([0.3, 0.8, 0.5, 0.9, 0.7, 0.4, 0.2])
    whole = tuple(stats.wilcoxon(np.sign(differences)))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        first = jnp.asarray(second + differences, dtype)
        assert wilcoxon(first, jnp.asarray(second, dtype)) == pytest.approx(whole)
    assert wilcoxon(first, jnp.asarray(second, jnp.float32)) == pytest.approx(whole)


def test_wilcoxon_of_ranks_is_that_of_the_same_numbers(unchecked):
    ranks = jnp.asarray([3, 8, 5, 9, 7]), np.array([2, 9, 4, 5, 7])
    assert wilcoxon(*ranks) == pytest.approx(tuple(stats.wilcoxon([1, -1, 1, 4, 0])))


def test_large_integers_are_subtracted_before_they_are_rounded(unchecked):
    """Nanoseconds of twelve runs near a second, whose float32 are 64 apart."""
    rng = np.random.default_rng(0)
    second = rng.integers(10**9, 11 * 10**8, 12)
    first = second + rng.integers(20, 60, 12) * rng.choice([-1, 1, 1], 12)
    differences = first - second
    assert wilcoxon(first, second) == pytest.approx(tuple(stats.wilcoxon(differences)))
    found = paired_bootstrap(first, second, key=jax.random.key(0), resamples=50)
    assert found.difference == pytest.approx(differences.mean(), rel=1e-6)
    assert found.low < differences.mean() < found.high
    exact = differences.astype(np.float32), np.zeros(12, np.float32)
    key = jax.random.key(1)
    p = [paired_randomization(*pair, key=key, resamples=50) for pair in ((first, second), exact)]
    assert p[0] == p[1] < 1
    later = 2**60 + first, 2**60 + second  # float64 are 256 apart there
    assert wilcoxon(*later) == wilcoxon(first, second)


def test_a_unit_is_no_rounding_of_large_integers(unchecked):
    first, second = np.array([3, -1, 7, 12, 5]) + 10**9, np.array([1, 0, 4, 2, 9]) + 10**9
    assert wilcoxon(first, second) == pytest.approx(tuple(stats.wilcoxon([2, -1, 3, 10, -4])))


@pytest.mark.parametrize(("only_first", "only_second"), [(7, 2), (2, 7), (4, 4), (0, 1), (5, 0)])
def test_mcnemar_counts_all_ways_to_be_right_alone(only_first, only_second):
    first = jnp.asarray([True] * only_first + [False] * only_second + [True] * 3 + [False])
    second = jnp.asarray([False] * only_first + [True] * only_second + [True] * 3 + [False])
    found = mcnemar(first, second)
    differ = only_first + only_second
    gaps = np.abs(2 * np.array(list(itertools.product([0, 1], repeat=differ))).sum(1) - differ)
    seen = abs(only_first - only_second)
    beyond, equal = np.mean(gaps > seen), np.mean(gaps == seen)
    assert found == pytest.approx((only_first, only_second, beyond + equal, beyond + equal / 2))


def test_mcnemar_of_systems_that_never_differ_and_its_false_alarms():
    right = jnp.asarray([True, False, True])
    assert mcnemar(right, right) == (0, 0, 1.0, 1.0)
    key = jax.random.key(0)
    draws = jax.random.uniform(key, (400, 2, 120)) < 0.7
    tests = [mcnemar(first, second) for first, second in draws]
    # Of 400 true hypotheses, 0.05 of which an exact test would reject: 20, and 32 is 2.75 standard
    # deviations more. The exact p-value rejects fewer than the mid-p-value, and is never below it.
    exact = sum(test.p_value <= 0.05 for test in tests)
    mid = sum(test.mid_p <= 0.05 for test in tests)
    assert 2 <= exact < mid <= 32


def test_errors_name_value_and_shape(unchecked):
    with pytest.raises(ValueError, match=r"at least 1, got shapes \(2,\) and \(3,\)"):
        mcnemar(jnp.ones(2, bool), jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"at least 1, got shapes \(0,\) and \(0,\)"):
        mcnemar(jnp.ones(0, bool), jnp.ones(0, bool))
    with pytest.raises(ValueError, match="right or wrong, got arrays of type int32 and bool"):
        mcnemar(jnp.ones(2, int), jnp.ones(2, bool))
    key, x = jax.random.key(0), jnp.arange(4.0)
    for test in (paired_bootstrap, paired_randomization):
        with pytest.raises(ValueError, match=r"got shapes \(4,\) and \(3,\)"):
            test(x, x[:3], key=key)
        with pytest.raises(ValueError, match=r"at least 2, got shapes \(1,\) and \(1,\)"):
            test(x[:1], x[:1], key=key)
        with pytest.raises(ValueError, match="second must be finite, got 1 NaN"):
            test(x, x.at[0].set(jnp.nan), key=key)
        with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
            test(x, x, key=key, resamples=0)
        with pytest.raises(ValueError, match="block must be at least 1, got 0"):
            test(x, x, key=key, block=0)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        paired_bootstrap(x, x, key=key, level=95)
    with pytest.raises(ValueError, match=r"non-empty vector, got shape \(0,\)"):
        holm(jnp.zeros(0))


@pytest.mark.slow
def test_systems_are_compared_task_by_task_and_metric_by_metric():
    first, second = scores(3, 40, 0.3)
    third = first - 1
    found = {
        "ours": {("qa", "ndcg"): np.asarray(first), ("qa", "mrr"): np.asarray(second)},
        "other": {("qa", "ndcg"): np.asarray(second), ("qa", "mrr"): np.asarray(third)},
    }
    key = jax.random.key(1)
    metrics = compare_systems(found, "ours", key=key, prefix="now_")
    for name, results in found.items():
        for (_, metric), values in results.items():
            np.testing.assert_allclose(metrics.pop(f"qa_{name}_{metric}"), values.mean())
    for metric, pair in (("ndcg", (first, second)), ("mrr", (second, third))):
        expected = paired_bootstrap(*pair, key=key)
        label = f"qa_now_{metric}_over_other"
        assert metrics.pop(label) == float(expected.difference)
        assert metrics.pop(f"{label}_low") == float(expected.low)
        assert metrics.pop(f"{label}_high") == float(expected.high)
        assert metrics.pop(f"{label}_p") == float(expected.p_value)
    assert not metrics
