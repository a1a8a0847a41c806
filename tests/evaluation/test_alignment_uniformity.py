"""Alignment and uniformity against all pairs in float64, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.special import ive, logsumexp

from rml.evaluation import alignment, uniformity


def rows(seed: int, n: int, d: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (n, d))


def unit(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_equals_its_definition(alpha):
    x, y = rows(0, 20, 5), 3 * rows(1, 20, 5)
    expected = np.mean(np.linalg.norm(unit(x) - unit(y), axis=1) ** alpha)
    np.testing.assert_allclose(alignment(x, y, alpha=alpha), expected, rtol=1e-5)


def test_alignment_is_0_for_equal_and_4_for_opposite_views():
    x = rows(0, 8, 5)
    assert float(alignment(x, x)) == 0
    np.testing.assert_allclose(alignment(x, -2 * x), 4, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alignment_has_a_finite_gradient_at_its_minimum(alpha):
    x = rows(0, 8, 5)
    gradient = jax.grad(lambda y: alignment(x, y, alpha=alpha))(x)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.5, 2.0, 200.0])
@pytest.mark.parametrize("block", [None, 7])
def test_uniformity_equals_its_definition(t, block):
    # At t = 200 every potential underflows float32: only a sum in log space survives.
    x = rows(0, 23, 40)
    potentials = -t * pdist(unit(x), "sqeuclidean")
    expected = logsumexp(potentials) - np.log(len(potentials))
    np.testing.assert_allclose(uniformity(x, t=t, block=block), expected, rtol=1e-5)


@pytest.mark.slow
def test_uniformity_is_0_for_a_point_and_least_for_the_uniform_distribution():
    np.testing.assert_allclose(uniformity(jnp.ones((9, 4))), 0, atol=1e-5)
    # Uniform points on the circle: E exp(2t cos - 2t) is the scaled Bessel function I0.
    angles = jnp.linspace(0, 2 * jnp.pi, 2001)[:-1]
    circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    np.testing.assert_allclose(uniformity(circle, t=2.0), np.log(ive(0, 4.0)), atol=2e-3)
    assert float(uniformity(circle)) < float(uniformity(circle + 0.5))


@pytest.mark.slow
def test_uniformity_of_half_precision_features():
    x = rows(0, 16, 32).astype(jnp.bfloat16)
    assert uniformity(x).dtype == jnp.float32
    np.testing.assert_allclose(uniformity(x), uniformity(x.astype(jnp.float32)), rtol=1e-5)


def test_uniformity_memory_does_not_hold_the_pairs():
    def temporary_bytes(n: int) -> int:
        lowered = jax.jit(uniformity).lower(jax.ShapeDtypeStruct((n, 8), jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(65536) < 4 * 65536**2 / 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: uniformity(x[:1]), r"at least two rows, got shape \(1, 3\)"),
        (lambda x: uniformity(x, t=0.0), "t must be positive, got 0.0"),
        (lambda x: uniformity(x.at[0, 0].set(jnp.nan)), "x must be finite, got 1 NaN"),
        (lambda x: alignment(x, x.at[0, 0].set(jnp.inf)), "y must be finite, got 1 NaN"),
        (lambda x: alignment(x, x, alpha=-1.0), "alpha must be positive, got -1.0"),
        (lambda x: alignment(x[:0], x[:0]), r"at least one pair, got arrays of shape \(0, 3\)"),
    ],
)
def test_errors_name_value_and_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 3)))


def test_views_must_have_one_shape(unchecked):
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        alignment(jnp.ones((4, 3)), jnp.ones((5, 3)))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2)])
def test_features_must_be_a_matrix(unchecked, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    for measure in (lambda x: alignment(x, -x), uniformity):
        with pytest.raises(ValueError, match=r"x must have the shape \[n, d\].*got \(4"):
            measure(x)
