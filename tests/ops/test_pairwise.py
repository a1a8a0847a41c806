"""Pairwise distances against SciPy in float64; folds over blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from rml.ops import pairwise


def rows(seed: int, n: int, d: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (n, d))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "metric"),
    [
        (pairwise.squared_euclidean, "sqeuclidean"),
        (pairwise.euclidean, "euclidean"),
        (lambda x, y: 1 - pairwise.cosine_similarity(x, y), "cosine"),
    ],
)
def test_equals_scipy(function, metric):
    x, y = rows(0, 7, 5), rows(1, 9, 5)
    expected = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), metric)
    np.testing.assert_allclose(function(x, y), expected, rtol=2e-6, atol=2e-6)


def test_common_offset_costs_no_digits():
    x, y = rows(0, 20, 8), rows(1, 30, 8)
    offset = jnp.float32(4096)
    x, y = x + offset, y + offset
    expected = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    # The expanded square without centring is wrong by units here: 8 · 4096² · 2^-24 = 8.
    np.testing.assert_allclose(pairwise.squared_euclidean(x, y), expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_its_own_distances_alone(bad):
    x, y = (rows(seed, 30, 8) + jnp.float32(4096) for seed in (0, 1))
    found = np.asarray(pairwise.squared_euclidean(x, y.at[:10, 3].set(bad)))
    expected = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    np.testing.assert_allclose(found[:, 10:], expected[:, 10:], rtol=1e-4)
    assert not np.isfinite(found[:, :10]).any()


@pytest.mark.slow
def test_the_mean_of_finite_rows_is_the_mean_to_the_bit():
    mean = jax.jit(pairwise.finite_mean)
    for n in (1, 49, 300):
        x = rows(n, n, 7)
        np.testing.assert_array_equal(mean(x), jax.jit(lambda x: jnp.mean(x, axis=0))(x))
    few = x.at[50:].set(1e30).at[3, 2].set(jnp.nan)
    kept = np.delete(np.asarray(x[:50]), 3, axis=0)
    np.testing.assert_allclose(mean(few, jnp.arange(300) < 50), kept.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(mean(jnp.full((3, 2), jnp.inf)), 0)


def test_distances_are_never_negative_and_zero_on_equal_rows():
    x = jnp.repeat(rows(0, 1, 64) * 100, 50, axis=0)
    squares = pairwise.squared_euclidean(x, x)
    assert float(jnp.min(squares)) == 0
    np.testing.assert_allclose(squares, 0, atol=1e-6)


def test_zero_row_has_cosine_zero():
    x = rows(0, 3, 4).at[1].set(0)
    cosine = pairwise.cosine_similarity(x, x)
    np.testing.assert_array_equal(cosine[1], 0)
    np.testing.assert_array_equal(cosine[:, 1], 0)


@pytest.mark.slow
def test_gradient_is_that_of_the_distance_and_zero_where_rows_coincide():
    x, y = rows(0, 4, 3), rows(1, 5, 3)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(pairwise.euclidean(x, y))))(x)
    difference = np.asarray(x, np.float64)[:, None] - np.asarray(y, np.float64)
    expected = (difference / np.linalg.norm(difference, axis=-1, keepdims=True)).sum(1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    zeros = jnp.zeros((2, 3))
    np.testing.assert_array_equal(
        jax.jit(jax.grad(lambda x: jnp.sum(pairwise.euclidean(x, zeros))))(zeros), 0
    )


def test_lengths_of_rows_have_no_slope_at_zero():
    x = jnp.array([[3.0, -4.0], [0.0, 0.0], [1e-30, 0.0]])  # the square of the last is 0
    lengths, back = jax.vjp(jax.jit(pairwise.safe_norm), x)
    np.testing.assert_array_equal(lengths, jnp.linalg.norm(x, axis=-1))
    np.testing.assert_allclose(back(jnp.ones(3))[0], [[0.6, -0.8], [0, 0], [0, 0]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function", [pairwise.dot_product, pairwise.squared_euclidean, pairwise.cosine_similarity]
)
def test_half_precision_is_accumulated_in_float32(function):
    x, y = rows(0, 6, 512).astype(jnp.bfloat16), rows(1, 7, 512).astype(jnp.bfloat16)
    result = function(x, y)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(
        result, function(x.astype(jnp.float32), y.astype(jnp.float32)), rtol=1e-5, atol=1e-5
    )
    mixed = function(x, y.astype(jnp.float32))
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, result, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        pairwise.dot_product,
        pairwise.cosine_similarity,
        pairwise.squared_euclidean,
        pairwise.euclidean,
    ],
)
def test_widths_must_agree(unchecked, function):
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        function(jnp.ones((2, 3)), jnp.ones((2, 4)))


@pytest.mark.slow
@settings(max_examples=8)
@given(n=st.integers(1, 17), block=st.integers(1, 20))
def test_fold_sees_every_row_once_and_in_order(n, block):
    x = jnp.arange(n, dtype=jnp.float32)[:, None]

    def step(carry, part, index, new):
        count, last, ordered = carry
        assert part.shape[0] <= block
        ordered &= jnp.all(part[:, 0] == index) & (jnp.min(jnp.where(new, index, n)) == last + 1)
        return count.at[index].add(new), jnp.max(index), ordered

    count, last, ordered = pairwise.fold_blocks(
        step, (jnp.zeros(n, int), jnp.asarray(-1), jnp.asarray(True)), x, block=block
    )
    np.testing.assert_array_equal(count, 1)
    assert int(last) == n - 1
    assert bool(ordered)


@pytest.mark.slow
def test_fold_differentiates_like_the_whole():
    x = rows(0, 11, 3)

    def folded(x):
        def step(total, part, index, new):
            return total + jnp.sum(jnp.where(new, jnp.sum(jnp.sin(part) * part, axis=1), 0))

        return pairwise.fold_blocks(step, jnp.zeros(()), x, block=4)

    value, gradient = jax.value_and_grad(folded)(x)
    expected = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(x) * x))(x)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)


@pytest.mark.parametrize(("n", "block", "message"), [(3, 0, "got 0"), (0, 4, r"\(0, 2\)")])
def test_fold_needs_rows_and_a_block(n, block, message):
    with pytest.raises(ValueError, match=message):
        pairwise.fold_blocks(lambda c, *_: c, jnp.zeros(()), jnp.ones((n, 2)), block=block)
