"""Logistic regression against scikit-learn in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from rml.evaluation import fit_logistic_regression

# One shape for most tests, so that the fit is compiled once.
N, D, CLASSES = 400, 12, 5


def sample(n: int = N, d: int = D, classes: int = CLASSES) -> tuple[jax.Array, jax.Array]:
    """Overlapping classes, features correlated and off the origin."""
    keys = jax.random.split(jax.random.key(0), 4)
    labels = jax.random.randint(keys[0], (n,), 0, classes)
    noise = jax.random.normal(keys[1], (n, d)) + jax.random.normal(keys[2], (classes, d))[labels]
    return noise @ (jnp.eye(d) + 0.5 * jax.random.normal(keys[3], (d, d)) / d**0.5) + 1, labels


def fit(x, y, **arguments):
    return fit_logistic_regression(x, y, **{"num_classes": CLASSES, "l2": 0.01, **arguments})


def reference(x, y, strength, sample_weight=None):
    """Weights and bias by scikit-learn, converged far past float32."""
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=5000)
    model.fit(np.asarray(x, np.float64), np.asarray(y), sample_weight)
    return model.coef_.T, model.intercept_


@pytest.mark.slow
@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
def test_equals_scikit_learn(l2):
    x, y = sample()
    model = fit(x, y, l2=l2, tolerance=1e-6)
    weights, bias = reference(x, y, 1 / (N * l2))
    assert bool(model.converged)
    np.testing.assert_allclose(model.weights, weights, atol=1e-3 * np.abs(weights).max())
    np.testing.assert_allclose(model.bias, bias - bias.mean(), atol=1e-3 * np.abs(bias).max())
    logits = np.asarray(x @ model.weights + model.bias)
    expected = np.asarray(x, np.float64) @ weights + bias
    np.testing.assert_allclose(softmax(logits, axis=1), softmax(expected, axis=1), atol=2e-4)


@pytest.mark.slow
def test_two_classes_equal_scikit_learn_at_twice_its_strength():
    x, y = sample(classes=2)
    model = fit(x, y, num_classes=2, tolerance=1e-6)
    weights, bias = reference(x, y, 2 / (N * 0.01))
    difference = model.weights[:, 1] - model.weights[:, 0]
    np.testing.assert_allclose(difference, weights[:, 0], atol=1e-3)
    np.testing.assert_allclose(model.bias[1] - model.bias[0], bias[0], atol=1e-3)


@pytest.mark.slow
def test_weight_zero_leaves_a_row_out_and_weights_count():
    x, y = sample()
    weight = jnp.asarray([0.0, 1.0, 2.5])[jnp.arange(N) % 3]
    model = fit(x, y, sample_weight=weight, tolerance=1e-6)
    weights, _ = reference(x, y, 1 / (float(weight.sum()) * 0.01), np.asarray(weight, np.float64))
    np.testing.assert_allclose(model.weights, weights, atol=1e-3 * np.abs(weights).max())
    spoiled = jnp.where(weight[:, None] == 0, 50.0, x)
    again = fit(spoiled, y, sample_weight=weight, tolerance=1e-6)
    np.testing.assert_allclose(again.weights, model.weights, atol=1e-3)


@pytest.mark.slow
def test_reported_gradient_is_the_gradient_at_the_solution():
    x, y = sample()
    # Stopped early, so that the gradient is well above rounding.
    model = fit(x, y, max_iterations=4)
    x64, w = np.asarray(x, np.float64), np.asarray(model.weights, np.float64)
    probability = softmax(x64 @ w + np.asarray(model.bias, np.float64), axis=1)
    residual = (probability - np.eye(CLASSES)[np.asarray(y)]) / N
    # The gradient is that around the mean, where weights and bias are separate.
    gradient = (x64 - x64.mean(0)).T @ residual + 0.01 * w
    expected = max(np.abs(gradient).max(), np.abs(residual.sum(0)).max())
    np.testing.assert_allclose(model.gradient_norm, expected, rtol=1e-3)
    assert int(model.iterations) == 4
    assert not bool(model.converged)


@pytest.mark.slow
def test_from_the_solution_nothing_is_left_to_do():
    x, y = sample()
    zeros = {"weights": jnp.zeros((D, CLASSES)), "bias": jnp.zeros(CLASSES)}
    first = fit(x, y, **zeros)
    again = fit(x, y, weights=first.weights, bias=first.bias)
    assert int(first.iterations) > 5
    assert int(again.iterations) <= 1


@pytest.mark.slow
def test_unreachable_tolerance_ends_where_float32_ends():
    x, y = sample()
    model = fit(x, y, tolerance=0.0, max_iterations=10**6)
    assert not bool(model.converged)
    assert float(model.gradient_norm) < 1e-5


@pytest.mark.slow
def test_strong_penalty_leaves_the_class_frequencies():
    x, y = sample()
    model = fit(x, y, l2=1e4, tolerance=1e-6)
    np.testing.assert_allclose(model.weights, 0, atol=1e-4)
    frequencies = np.bincount(np.asarray(y)) / N
    np.testing.assert_allclose(log_softmax(np.asarray(model.bias)), np.log(frequencies), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("present", [1, 3])
def test_classes_without_rows_are_not_predicted(present):
    x, y = sample()
    y = y % present + 1
    model = fit(x, y)
    assert bool(model.converged)
    predicted = np.argmax(x @ model.weights + model.bias, axis=1)
    assert set(predicted.tolist()) <= set(range(1, present + 1))


@pytest.mark.slow
def test_more_features_than_rows_in_half_precision():
    x, y = sample(40, 100, 3)
    x = x.astype(jnp.bfloat16)
    model = fit(x, y, num_classes=3, l2=0.1, tolerance=1e-6)
    weights, _ = reference(x, y, 1 / (40 * 0.1))
    assert model.weights.dtype == jnp.float32
    np.testing.assert_allclose(model.weights, weights, atol=1e-3 * np.abs(weights).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": jnp.zeros(1, int)}, r"one label for each of 8 rows, got shape \(1,\)"),
        ({"labels": jnp.zeros((8, 1), int)}, r"one label for each of 8 rows, got shape \(8, 1\)"),
        ({"labels": jnp.arange(8) % 2 + 1}, "between 0 and 1, got values from 1 to 2"),
        ({"sample_weight": jnp.ones(5)}, r"one weight for each of 8 rows, got shape \(5,\)"),
        ({"features": jnp.ones((8, 3, 2))}, r"features must have the shape \[n, d\]"),
        ({"features": jnp.ones((8, 3)).at[2, 1].set(jnp.nan)}, "features must be finite, got 1"),
        ({"weights": jnp.ones((3, 1))}, r"weights .* must have shape \(3, 2\), got \(3, 1\)"),
        ({"weights": jnp.ones((2, 3))}, r"weights .* must have shape \(3, 2\), got \(2, 3\)"),
        ({"bias": jnp.ones(1)}, r"bias to start from must have shape \(2,\), got \(1,\)"),
        ({"bias": jnp.ones((1, 2))}, r"bias to start from must have shape \(2,\), got \(1, 2\)"),
        ({"l2": -1.0}, "l2 must be at least 0, got -1.0"),
        ({"l2": float("nan")}, "l2 must be at least 0, got nan"),
    ],
)
def test_rows_labels_and_penalties_that_do_not_fit_are_refused(unchecked, change, message):
    given = {"features": jnp.ones((8, 3)), "labels": jnp.arange(8) % 2, "l2": 0.1}
    with pytest.raises(ValueError, match=message):
        fit_logistic_regression(**given | change, num_classes=2)
