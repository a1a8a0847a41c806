"""The linear probe against scikit-learn, and how it chooses its penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rml.evaluation import accuracy, linear_probe
from rml.evaluation.linear_probe import _held_out, _standardised

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def split(digits):
    x, y = digits
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.fixture(scope="module")
def probe(split):
    return linear_probe(*split, num_classes=10, key=KEY)


@pytest.mark.slow
def test_equals_scikit_learn_at_the_penalty_chosen(split):
    x, y, test_x, test_y = split
    probe = linear_probe(*split, num_classes=10, key=KEY, tolerance=1e-6)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (1000 * probe.l2), tol=1e-9, max_iter=5000)
    )
    model.fit(np.asarray(x, np.float64), np.asarray(y))
    assert bool(probe.converged)
    ours = jax.nn.softmax(test_x @ probe.weights + probe.bias)
    np.testing.assert_allclose(ours, model.predict_proba(np.asarray(test_x)), atol=2e-3)
    np.testing.assert_allclose(
        probe.accuracy, model.score(np.asarray(test_x), np.asarray(test_y)), rtol=1e-6
    )


@pytest.mark.slow
def test_reads_digits(probe):
    assert float(probe.accuracy) > 0.94
    assert bool(probe.converged)
    assert float(probe.gradient_norm) <= 1e-5


@pytest.mark.slow
def test_weights_apply_to_features_as_given(split, probe):
    logits = split[2] @ probe.weights + probe.bias
    np.testing.assert_allclose(accuracy(logits, split[3]), probe.accuracy, rtol=1e-6)


@pytest.mark.slow
def test_penalty_is_the_best_on_the_held_out_rows(split):
    grid = (1e-3, 100.0, 1e-2)  # in the order given, not sorted
    probe = linear_probe(*split, num_classes=10, key=KEY, l2_grid=grid)
    held = np.asarray(_held_out(split[1], KEY, 0.2))
    x, y = np.asarray(split[0], np.float64), np.asarray(split[1])
    x = StandardScaler().fit_transform(x)
    expected = [
        LogisticRegression(C=1 / (800 * l2), tol=1e-6, max_iter=5000)
        .fit(x[~held], y[~held])
        .score(x[held], y[held])
        for l2 in grid
    ]
    np.testing.assert_allclose(probe.held_out_accuracy, expected, atol=1 / 200 + 1e-6)
    assert float(probe.held_out_accuracy[grid.index(probe.l2)]) == float(
        probe.held_out_accuracy.max()
    )
    assert probe.l2 != 100.0


@pytest.mark.slow
def test_among_equal_accuracies_the_strongest_penalty_is_taken():
    y = jnp.repeat(jnp.arange(2), 20)
    x = jnp.zeros((40, 5)).at[:, 0].set(2.0 * y - 1)
    probe = linear_probe(x, y, x, y, num_classes=3, key=KEY, l2_grid=(1e-3, 0.1, 1e-2))
    np.testing.assert_array_equal(probe.held_out_accuracy, 1)
    assert probe.l2 == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_held_out_rows_are_spread_over_the_classes(share):
    labels = jnp.repeat(jnp.arange(4), jnp.asarray([100, 40, 200, 60]))
    first, second = (np.asarray(_held_out(labels, jax.random.key(i), share)) for i in (0, 1))
    for c, size in enumerate((100, 40, 200, 60)):
        assert abs(first[labels == c].sum() - share * size) < 1 + 1e-6
    assert first.sum() == 400 * share
    assert (first != second).any()


@pytest.mark.parametrize("scale", [2.0**66, 2.0**-72])
def test_features_whose_squares_leave_the_range_are_no_constants(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), jnp.float32)
    mean, deviation, standard = _standardised(x)
    found = _standardised(x * scale)
    np.testing.assert_array_equal(found[0] / scale, mean)
    np.testing.assert_array_equal(found[1] / scale, deviation)
    np.testing.assert_array_equal(found[2], standard)
    np.testing.assert_allclose(deviation, np.std(x, axis=0), rtol=1e-6)


def test_features_may_have_any_scale_and_offset(split, probe):
    x, y, test_x, test_y = split
    moved = linear_probe(1e4 * x - 300, y, 1e4 * test_x - 300, test_y, num_classes=10, key=KEY)
    assert moved.l2 == probe.l2
    np.testing.assert_allclose(moved.accuracy, probe.accuracy, atol=2e-3)


@pytest.mark.slow
def test_constant_feature_has_no_influence(split, probe):
    # 0.1 has no exact mean in float32; its deviation is rounding, not a feature.
    x, y, test_x, test_y = split
    wider = jnp.pad(x, ((0, 0), (0, 1)), constant_values=0.1)
    test_wider = jnp.pad(test_x, ((0, 0), (0, 1)), constant_values=0.2)
    result = linear_probe(wider, y, test_wider, test_y, num_classes=10, key=KEY)
    np.testing.assert_allclose(result.accuracy, probe.accuracy, atol=1e-6)


@pytest.mark.slow
def test_collapsed_features_predict_the_commonest_class():
    labels = jnp.asarray([0, 1, 1, 2] * 10)
    x = jnp.full((40, 5), 0.1)
    probe = linear_probe(x, labels, x, labels, num_classes=3, key=KEY)
    assert float(probe.accuracy) == 0.5


def test_half_precision_features(split, probe):
    x, y, test_x, test_y = split
    result = linear_probe(
        x.astype(jnp.bfloat16), y, test_x.astype(jnp.bfloat16), test_y, num_classes=10, key=KEY
    )
    # Pixels are small integers, exact in bfloat16.
    np.testing.assert_allclose(result.accuracy, probe.accuracy, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2_grid": ()}, "l2_grid must hold positive penalties"),
        ({"l2_grid": (0.1, 0.0)}, "l2_grid must hold positive penalties"),
        ({"held_out": 0.01}, "got 0.01 of 20 rows"),
        ({"held_out": 1.0}, "got 1.0 of 20 rows"),
        ({"num_classes": 3}, "train_labels must lie between 0 and 2, got values from 0 to 3"),
    ],
)
def test_errors_name_value_and_range(change, message):
    x, y = jnp.ones((20, 3)), jnp.arange(20) % 4
    arguments = {"num_classes": 4, "key": KEY, **change}
    with pytest.raises(ValueError, match=message):
        linear_probe(x, y, x, y, **arguments)


def test_features_that_are_not_finite_are_named():
    x, y = jnp.ones((20, 3)), jnp.arange(20) % 4
    with pytest.raises(ValueError, match="train_features must be finite, got 1 NaN"):
        linear_probe(x.at[0, 0].set(jnp.nan), y, x, y, num_classes=4, key=KEY)


def test_shapes_must_agree(unchecked):
    x, y = jnp.ones((20, 3)), jnp.arange(20) % 4
    with pytest.raises(ValueError, match=r"\(20, 3\) and \(20, 2\)"):
        linear_probe(x, y, x[:, :2], y, num_classes=4, key=KEY)
