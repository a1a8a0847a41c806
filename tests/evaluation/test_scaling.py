import numpy as np
import pytest
from scipy import stats

from rml.evaluation.scaling import examples_needed, log_log_slope_interval, log_log_slopes


def test_slopes_of_power_laws_are_their_exponents():
    x = np.array([3.0, 11.0, 40.0, 170.0])
    exponents = np.array([[2.7, -0.5], [0.0, 1.0]])
    y = 0.013 * x ** exponents[..., None]
    np.testing.assert_allclose(log_log_slopes(x, y), exponents, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_log_slopes(tuple(x.tolist()), y[0, 0]), 2.7, rtol=1e-12)


def test_slopes_of_scattered_points_are_least_squares():
    rng = np.random.default_rng(0)
    x = rng.uniform(2, 90, 9)
    y = 5 * x**-0.8 * np.exp(0.3 * rng.standard_normal((4, 9)))
    expected = [np.polyfit(np.log10(x), np.log10(row), 1)[0] for row in y]
    np.testing.assert_allclose(log_log_slopes(x, y), expected, rtol=1e-10)


def test_a_row_that_is_not_finite_spoils_itself_alone():
    x = np.array([2.0, 5.0, 9.0])
    found = log_log_slopes(x, np.array([[np.nan, 1.0, 2.0], x**1.5]))
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], 1.5)


def test_a_slope_with_its_interval_is_that_of_all_points():
    rng = np.random.default_rng(1)
    x = np.array([2, 5, 12, 40])
    y = 3 * x[:, None] ** 1.7 * np.exp(0.2 * rng.standard_normal((4, 3)))
    found = log_log_slope_interval(x, y)
    a = np.stack([np.log(np.repeat(x, 3)), np.ones(12)], axis=1)
    (slope, _), residual, *_ = np.linalg.lstsq(a, np.log(y).ravel())
    error = np.sqrt(residual[0] / 10 * np.linalg.inv(a.T @ a)[0, 0])
    half = stats.t.ppf(0.975, 10) * error
    np.testing.assert_allclose(found, (slope, slope - half, slope + half), rtol=1e-10)


def test_examples_needed_are_read_off_in_logarithms():
    sizes, errors = (10, 100, 1000), np.array([1.0, 0.5, 0.125])
    expected = 100 * 10 ** (np.log(0.5 / 0.25) / np.log(0.5 / 0.125))
    assert examples_needed(sizes, errors, 0.25) == pytest.approx(expected)
    assert np.isnan(examples_needed(sizes, errors, 0.1))
    assert np.isnan(examples_needed(sizes, errors, 2.0))
    # Before an error of zero there is no line to read off: the size itself has the error.
    assert examples_needed(sizes, np.array([0.5, 0.2, 0.0]), 0.1) == 1000
    assert examples_needed(sizes, np.array([0.5, 0.2, 0.0]), 0.2) == pytest.approx(100)


def test_examples_needed_for_a_power_law_are_its_inverse():
    sizes = (30, 70, 400, 900)
    errors = 4 * np.array(sizes) ** -0.6
    for needed in (50.0, 399.0, 899.0):
        assert examples_needed(sizes, errors, 4 * needed**-0.6) == pytest.approx(needed)
    # A level that is met exactly is met there; the first crossing counts.
    assert examples_needed(sizes, errors, errors[1]) == pytest.approx(70)
    assert examples_needed(sizes, errors, errors[0]) == 30
    assert 30 < examples_needed(sizes, np.array([1.0, 0.1, 0.9, 0.1]), 0.5) < 70
    assert np.isnan(examples_needed(sizes, np.array([np.nan, 0.5, 0.2, 0.1]), 0.3))
