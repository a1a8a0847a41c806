"""Student's interval: its coverage, scipy's ends, a single value."""

import inspect

import numpy as np
import pytest
from scipy import stats

from rml.ops import crossed_interval, t_interval


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_the_mean_as_often_as_it_says(n, level):
    trials = 40_000
    values = np.random.default_rng(n).normal(3.0, 2.0, (trials, n))
    mean, low, high = t_interval(values, level=level)
    np.testing.assert_allclose(high - mean, mean - low)
    covered = (np.abs(3.0 - mean) <= high - mean).mean()
    assert covered == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / trials))


@pytest.mark.parametrize(
    ("skewed", "mean", "covered"),
    [
        ("exponential", 1.0, {2: 0.91, 3: 0.88, 5: 0.88, 10: 0.90}),
        ("lognormal", np.exp(0.5), {2: 0.89, 3: 0.84, 5: 0.82, 10: 0.84}),
    ],
)
def test_skewed_values_are_covered_as_rarely_as_the_docstring_says(skewed, mean, covered):
    for n, share in covered.items():
        values = getattr(np.random.default_rng(n), skewed)(size=(40_000, n))
        _, low, high = t_interval(values)
        assert ((low <= mean) & (mean <= high)).mean() == pytest.approx(share, abs=0.012)
        assert (low > mean).mean() < 0.012  # the side without the tail
        assert f"{100 * share:.0f}" in (t_interval.__doc__ or "")


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=(5, 4))
    found = t_interval(values, level=0.9)
    low, high = stats.t.interval(0.9, 3, loc=values.mean(1), scale=stats.sem(values, axis=1))
    np.testing.assert_allclose(found, [values.mean(1), low, high], rtol=1e-12)


def test_interval_is_that_of_the_t_test_whatever_the_shape():
    values = np.random.default_rng(0).gamma(2.0, size=(2, 3, 7))
    found = t_interval(values)
    assert found.mean.shape == (2, 3)
    for index in np.ndindex(2, 3):
        interval = stats.ttest_1samp(values[index], 0.0).confidence_interval(0.95)
        np.testing.assert_allclose(found.mean[index], values[index].mean())
        np.testing.assert_allclose((found.low[index], found.high[index]), interval)


def test_equal_values_are_their_mean_and_its_ends_to_the_bit():
    values = np.full(3, 0.1)
    assert values.mean() != 0.1
    assert t_interval(values) == (0.1, 0.1, 0.1)


def test_one_value_has_a_mean_and_no_interval(recwarn):
    found = t_interval(np.array([[2.0], [5.0]]))
    np.testing.assert_array_equal(found.mean, [2.0, 5.0])
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()
    assert not recwarn.list


def test_interval_over_random_splits_covers_a_mean_that_the_plain_one_misses():
    # The test error of a mean that is learned from a part of 50 numbers, over many such data sets.
    trials, n, test, train = 2_000, 10, 10, 40
    rng = np.random.default_rng(0)
    data = rng.normal(size=(trials, 1, test + train))
    order = rng.permuted(np.tile(np.arange(test + train), (trials, n, 1)), axis=2)
    split = np.take_along_axis(np.tile(data, (1, n, 1)), order, axis=2)
    learned = split[..., test:].mean(-1, keepdims=True)
    errors = ((split[..., :test] - learned) ** 2).mean(-1)
    truth = 1 + 1 / train
    plain, corrected = t_interval(errors), t_interval(errors, overlap=test / train)
    share = {
        name: ((own.low <= truth) & (truth <= own.high)).mean()
        for name, own in (("plain", plain), ("corrected", corrected))
    }
    assert share["plain"] < 0.75
    assert 0.9 < share["corrected"] < 0.99
    half = stats.t.ppf(0.975, n - 1) * errors.std(-1, ddof=1) * np.sqrt(1 / n + test / train)
    np.testing.assert_allclose(corrected.high - corrected.mean, half)


def test_an_overlap_below_0_is_named():
    with pytest.raises(ValueError, match=r"overlap must be at least 0, got -0\.1"):
        t_interval(np.zeros(3), overlap=-0.1)


def test_a_level_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.0"):
        t_interval(np.zeros(3), level=1.0)


def _drawn(rng, shape, law):
    return rng.normal(size=shape) if law == "normal" else rng.exponential(size=shape) - 1


@pytest.mark.parametrize("law", ["normal", "exponential"])
@pytest.mark.parametrize(("seeds", "units"), [(5, 100), (10, 60)])
@pytest.mark.parametrize(("over_seeds", "over_units"), [(0.3, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_crossed_interval_covers_the_mean_of_seeds_and_units_together(
    law, seeds, units, over_seeds, over_units
):
    rng, held, rounds = np.random.default_rng(seeds), 0, 800
    for _ in range(rounds):
        rows = over_seeds * rng.normal(size=(seeds, 1)) + over_units * _drawn(rng, (1, units), law)
        own = crossed_interval(rows + _drawn(rng, (seeds, units), law))
        held += own.low <= 0 <= own.high
    assert 0.915 <= held / rounds <= 0.985


@pytest.mark.parametrize("seeds", [2, 3])
def test_crossed_interval_of_few_seeds_covers_somewhat_less(seeds):
    rng, held = np.random.default_rng(seeds), 0
    for _ in range(800):
        rows = 0.3 * rng.normal(size=(seeds, 1)) + rng.normal(size=(1, 100))
        own = crossed_interval(rows + rng.normal(size=(seeds, 100)))
        held += own.low <= 0 <= own.high
    assert 0.88 <= held / 800 <= 0.97


def test_clusters_are_what_varies_where_units_of_one_are_alike():
    rng, held, naive = np.random.default_rng(0), 0, 0
    clusters = np.repeat(np.arange(20), 10)
    for _ in range(400):
        rows = rng.normal(size=20)[clusters] + 0.1 * rng.normal(size=(6, 200))
        own, each = crossed_interval(rows, clusters=clusters), crossed_interval(rows)
        assert own.mean == pytest.approx(each.mean, abs=1e-12)
        held += own.low <= 0 <= own.high
        naive += each.low <= 0 <= each.high
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.6


def test_clusters_of_other_sizes_keep_the_mean_over_units():
    rows = np.arange(12.0).reshape(2, 6)
    own = crossed_interval(rows, clusters=np.array([3, 3, 3, 3, 5, 9]))
    assert own.mean == pytest.approx(rows.mean())
    assert crossed_interval(rows, clusters=np.arange(6)) == crossed_interval(rows)


def test_crossed_interval_is_a_two_way_analysis_of_variance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 1)) + 2 * rng.normal(size=(1, 7)) + rng.normal(size=(4, 7))
    own = crossed_interval(rows, level=0.9)
    seeds = 7 * rows.mean(1).var(ddof=1)
    units = 4 * rows.mean(0).var(ddof=1)
    left = (rows - rows.mean(1, keepdims=True) - rows.mean(0) + rows.mean()).ravel()
    rest = left @ left / 18
    total = seeds + units - rest
    freedom = total**2 / (seeds**2 / 3 + units**2 / 6 + rest**2 / 18)
    half = stats.t.ppf(0.95, freedom) * np.sqrt(total / 28)
    np.testing.assert_allclose(own[:3], [rows.mean(), rows.mean() - half, rows.mean() + half])
    np.testing.assert_allclose(own[3:], np.sqrt([(seeds - rest) / 7, (units - rest) / 4]))


def test_one_seed_or_one_unit_leaves_students_interval():
    values = np.random.default_rng(0).normal(size=8)
    for rows, over in ((values[None], (0.0, values.std(ddof=1))), (values[:, None], None)):
        own = crossed_interval(rows)
        np.testing.assert_allclose(own[:3], t_interval(values))
        assert own[3:] == pytest.approx(over or (values.std(ddof=1), 0.0))
    assert np.isnan(crossed_interval(np.ones((1, 1))).low)
    assert crossed_interval(np.full((3, 4), 0.5))[:3] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (np.ones(3), {}, r"values must be \[seeds, units\] and not empty, got shape \(3,\)"),
        (np.ones((2, 3)), {"level": 1.0}, "level must be between 0 and 1, got 1.0"),
        (np.ones((2, 3)), {"clusters": np.arange(2)}, r"clusters must be one a unit, \(3,\), got"),
    ],
)
def test_crossed_interval_refuses_what_is_no_table(values, options, said):
    unchecked = inspect.unwrap(crossed_interval)  # as a user calls it, without checks of types
    with pytest.raises(ValueError, match=said):
        unchecked(values, **options)
