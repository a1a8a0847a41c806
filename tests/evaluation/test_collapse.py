"""Rank diagnostics against NumPy in float64, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import (
    collapsed,
    effective_rank,
    participation_ratio,
    rankme,
    singular_values,
)

N, D = 40, 12


def spectrum(values) -> jax.Array:
    """An N × D matrix with these singular values and random directions."""
    left = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (N, D)))[0]
    right = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (D, D)))[0]
    return (left * jnp.asarray(values, jnp.float32)) @ right


def exp_entropy(shares) -> float:
    shares = np.asarray(shares, np.float64)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("center", [False, True])
def test_equal_numpy(center):
    x = jax.random.normal(jax.random.key(0), (N, D)) + 2
    x64 = np.asarray(x, np.float64)
    singular = np.linalg.svd(x64 - x64.mean(0) * center, compute_uv=False)
    np.testing.assert_allclose(singular_values(x, center=center), singular, rtol=1e-5)
    shares = singular / singular.sum()
    np.testing.assert_allclose(effective_rank(x, center=center), exp_entropy(shares), rtol=1e-5)
    expected = (singular**2).sum() ** 2 / (singular**4).sum()
    np.testing.assert_allclose(participation_ratio(x, center=center), expected, rtol=1e-5)
    if not center:
        np.testing.assert_allclose(rankme(x), exp_entropy(shares + 1e-7), rtol=1e-5)
        np.testing.assert_allclose(rankme(x, epsilon=1e-2), exp_entropy(shares + 1e-2), rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, D])
def test_equal_singular_values_count_the_rank(rank):
    x = spectrum([3.0] * rank + [0.0] * (D - rank))
    np.testing.assert_allclose(rankme(x), rank, rtol=1e-4)
    np.testing.assert_allclose(effective_rank(x), rank, rtol=1e-4)
    np.testing.assert_allclose(participation_ratio(x, center=False), rank, rtol=1e-4)


def test_small_singular_values_are_not_lost_in_rounding():
    values = np.geomspace(1, 1e-5, D)
    np.testing.assert_allclose(singular_values(spectrum(values)), values, atol=1e-6, rtol=0.02)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("measure", [rankme, effective_rank, participation_ratio])
def test_scale_does_not_matter(measure, scale):
    x = jax.random.normal(jax.random.key(0), (N, D))
    np.testing.assert_allclose(measure(scale * x), measure(x), rtol=1e-5)


@pytest.mark.parametrize("measure", [rankme, effective_rank, participation_ratio])
def test_zero_matrix_has_rank_zero(measure):
    assert float(measure(jnp.zeros((N, D)))) == 0


def test_constant_features_have_one_direction_or_none():
    x = jnp.full((N, D), 2.0)
    np.testing.assert_allclose(rankme(x), 1, rtol=1e-4)
    np.testing.assert_allclose(effective_rank(x), 1, rtol=1e-4)
    assert float(effective_rank(x, center=True)) == 0
    assert float(participation_ratio(x)) == 0


def test_equal_rows_have_no_direction_where_their_mean_is_rounded():
    row = jax.random.normal(jax.random.key(0), (16,))
    for x in (jnp.full((1000, 8), 0.1), jnp.broadcast_to(row, (1000, 16))):
        assert float(participation_ratio(x)) == 0
        assert float(effective_rank(x, center=True)) == 0


def test_a_dead_feature_leaves_the_slope_of_the_effective_rank():
    dead = jnp.array([[1.0, 0.0, 3.0], [1.0, 0.0, 5.0], [4.0, 0.0, 7.0]])
    alive = dead[:, ::2]
    slope = jax.jit(jax.grad(effective_rank))
    np.testing.assert_allclose(slope(dead)[:, ::2], slope(alive), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(effective_rank(dead), effective_rank(alive), rtol=1e-6)


def test_equal_rows_are_collapsed_whatever_their_scale():
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((30, 6)), jnp.float32)
    for scale in (1e-20, 1.0, 1e20):
        assert collapsed(scale * jnp.broadcast_to(rows[:1], rows.shape))
        assert collapsed(scale * (7 + 1e-6 * rows))
        assert not collapsed(scale * rows)
        assert not collapsed(scale * rows.at[2:].set(rows[1]))  # one row differs
    assert collapsed(jnp.zeros((4, 3)))


def test_wide_and_half_precision_features_inside_jit():
    x = jax.random.normal(jax.random.key(0), (5, D)).astype(jnp.bfloat16)
    result = jax.jit(rankme)(x)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, rankme(x.astype(jnp.float32)), rtol=1e-5)
    assert 1 < float(result) <= 5 + 1e-4


@pytest.mark.parametrize("measure", [rankme, effective_rank, participation_ratio])
def test_errors_name_what_is_wrong(measure):
    with pytest.raises(ValueError, match="features must be finite, got 1 NaN"):
        measure(jnp.ones((4, 3)).at[1, 1].set(jnp.nan))
    with pytest.raises(ValueError, match=r"features must not be empty, got shape \(0, 3\)"):
        measure(jnp.ones((0, 3)))


@pytest.mark.parametrize(
    "measure", [rankme, effective_rank, participation_ratio, singular_values, collapsed]
)
def test_features_must_be_a_finite_matrix(unchecked, measure):
    with pytest.raises(ValueError, match=r"features must have the shape \[n, d\].*\(4, 3, 2\)"):
        measure(jnp.ones((4, 3, 2)))
    with pytest.raises(ValueError, match="features must be finite, got 3 NaN"):
        measure(jnp.ones((4, 3)).at[1].set(jnp.nan))
