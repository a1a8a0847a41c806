"""Nearest-neighbour classification against scikit-learn in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from rml.evaluation import knn_accuracy, knn_predict


def sample(seed: int, n: int, d: int, classes: int) -> tuple[jax.Array, jax.Array]:
    features, labels = jax.random.split(jax.random.key(seed))
    return jax.random.normal(features, (n, d)), jax.random.randint(labels, (n,), 0, classes)


def oracle(x, y, queries, k, temperature, classes):
    """Shares of the vote by scikit-learn; of plain votes if the temperature is None."""
    weigh = "uniform" if temperature is None else lambda d: np.exp((1 - d) / temperature)
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weigh)
    model.fit(np.asarray(x, np.float64), np.asarray(y))
    shares = np.zeros((len(queries), classes))
    shares[:, model.classes_] = model.predict_proba(np.asarray(queries, np.float64))
    return shares


@pytest.mark.slow
@settings(max_examples=6)
@given(
    sizes=st.sampled_from([(1, 9, 1, 4), (30, 1, 5, 40), (23, 9, 5, 7)]),  # each is compiled
    temperature=st.sampled_from([None, 0.07, 1.0]),
    data=st.data(),
)
def test_equals_scikit_learn(sizes, temperature, data):
    n, m, classes, block = sizes
    k = data.draw(st.integers(1, n))
    x, y = sample(0, n, 4, classes)
    queries, _ = sample(1, m, 4, classes)
    weights = {"weighted": False} if temperature is None else {"temperature": temperature}
    shares = knn_predict(x, y, queries, num_classes=classes, k=k, block=block, **weights)
    np.testing.assert_allclose(
        shares, oracle(x, y, queries, k, temperature, classes), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_scikit_learn_on_digits(digits, weighted):
    x, y = digits
    train, test = slice(0, 1200), slice(1200, None)
    predict = partial(knn_predict, x[train], y[train], x[test], num_classes=10, weighted=weighted)
    expected = oracle(x[train], y[train], x[test], 20, 0.07 if weighted else None, 10)
    np.testing.assert_allclose(predict(block=500), expected, atol=2e-5)
    result = knn_accuracy(
        x[train], y[train], x[test], y[test], num_classes=10, weighted=weighted, block=500
    )
    np.testing.assert_allclose(result, (expected.argmax(1) == y[test]).mean(), rtol=1e-6)


@pytest.mark.slow
def test_nearest_neighbour_of_a_row_is_itself_whatever_its_scale():
    x, y = sample(0, 40, 6, 5)
    result = knn_accuracy(x, y, 1e3 * x, y, num_classes=5, k=1, block=16)
    assert float(result) == 1


@pytest.mark.slow
def test_half_precision_features():
    x, y = sample(0, 40, 64, 3)
    x = x.astype(jnp.bfloat16)
    shares = knn_predict(x, y, x[:7], num_classes=3, k=5, block=16)
    assert shares.dtype == jnp.float32
    np.testing.assert_allclose(shares, oracle(x, y, x[:7], 5, 0.07, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_class_takes_the_whole_vote():
    x, _ = sample(0, 10, 3, 1)
    shares = knn_predict(x, jnp.full(10, 2), x, num_classes=4, k=3)
    np.testing.assert_allclose(shares, np.eye(4)[[2] * 10], atol=1e-6)


@pytest.mark.parametrize("features", [jnp.ones((6, 3)), jnp.zeros((6, 3))])
def test_constant_features_vote_by_their_first_rows(features):
    labels = jnp.asarray([1, 1, 0, 2, 2, 2])
    shares = knn_predict(features, labels, features, num_classes=3, k=3, block=2)
    np.testing.assert_allclose(shares, np.tile([1 / 3, 2 / 3, 0], (6, 1)), atol=1e-6)


def test_equal_votes_go_to_the_lower_class():
    x, labels = jnp.ones((2, 3)), jnp.asarray([1, 0])
    result = knn_accuracy(x, labels, x, jnp.zeros(2, int), num_classes=2, k=2, weighted=False)
    assert float(result) == 1


@pytest.mark.slow
def test_low_temperature_overflows_nothing():
    x, y = sample(0, 30, 3, 4)
    shares = knn_predict(x, y, x, num_classes=4, k=10, temperature=1e-4)
    np.testing.assert_allclose(shares, np.eye(4)[np.asarray(y)], atol=1e-6)


@pytest.mark.slow
def test_works_inside_jit():
    x, y = sample(0, 20, 3, 4)
    inside = jax.jit(partial(knn_accuracy, num_classes=4, k=3))
    np.testing.assert_allclose(
        inside(x, y, x[:5], y[:5]), knn_accuracy(x, y, x[:5], y[:5], num_classes=4, k=3)
    )


@pytest.mark.slow
def test_memory_is_bounded_by_the_block():
    def temporary_bytes(size: int, block: int) -> int:
        spec = jax.ShapeDtypeStruct
        features, labels = spec((size, 16), jnp.float32), spec((size,), jnp.int32)
        predict = jax.jit(partial(knn_predict, num_classes=3, k=5, block=block))
        lowered = predict.lower(features, labels, features)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(2048, 256), temporary_bytes(16384, 256)
    # Copies and votes are linear in n + m; the pairs alone would be 4 · 16384² bytes.
    assert large - small < 4 * 2 * (16384 - 2048) * (16 + 5 * 8)
    assert large < 4 * 16384**2 / 100
    assert temporary_bytes(2048, 1024) > small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 11}, "between 1 and the 10 training rows, got 11"),
        ({"k": 0}, "between 1 and the 10 training rows, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"num_classes": 2}, "train_labels must lie between 0 and 1, got values from 0 to 2"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ],
)
def test_errors_name_value_and_range(change, message):
    x, labels = jnp.ones((10, 3)), jnp.arange(10) % 3
    arguments = {"num_classes": 3, "k": 2, **change}
    with pytest.raises(ValueError, match=message):
        knn_predict(x, labels, x, **arguments)


def test_features_that_are_not_finite_are_named():
    x, labels = jnp.ones((10, 3)), jnp.zeros(10, int)
    bad = x.at[2, 1].set(jnp.nan).at[3, 0].set(jnp.inf)
    with pytest.raises(ValueError, match="train_features must be finite, got 2 NaN or infinite"):
        knn_predict(bad, labels, x, num_classes=3, k=2)
    with pytest.raises(ValueError, match="test_features must be finite, got 2 NaN or infinite"):
        knn_predict(x, labels, bad, num_classes=3, k=2)


def test_shapes_must_agree(unchecked):
    x, labels = jnp.ones((10, 3)), jnp.zeros(10, int)
    with pytest.raises(ValueError, match=r"\(10, 3\) and \(4, 5\)"):
        knn_predict(x, labels, jnp.ones((4, 5)), num_classes=3, k=2)
    with pytest.raises(ValueError, match=r"for each of 10 rows, got shape \(9,\)"):
        knn_predict(x, labels[:9], x, num_classes=3, k=2)
    with pytest.raises(ValueError, match=r"test_labels must hold one label for each of 10 rows"):
        knn_accuracy(x, labels, x, labels[:9], num_classes=3, k=2)


@pytest.mark.slow
def test_accuracy_passes_its_options_on():
    x, y = sample(0, 40, 4, 3)
    queries, labels = sample(1, 60, 4, 3)
    for options in (dict(k=15, temperature=3.0), dict(k=9, weighted=False)):
        shares = knn_predict(x, y, queries, num_classes=3, **options)
        expected = np.mean(np.argmax(shares, 1) == labels)
        found = knn_accuracy(x, y, queries, labels, num_classes=3, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
