import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.ops.similarity import normalize, unit_scale


def test_rows_have_unit_length_and_keep_direction():
    x = np.random.default_rng(0).standard_normal((5, 3, 7)) * 1e3
    y = normalize(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-5)


def test_gradient_is_orthogonal_to_the_row():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(normalize(x)))))(x)
    np.testing.assert_allclose(jnp.sum(grad * x, axis=-1), 0, atol=1e-5)


def test_zero_row_stays_zero_with_gradient_zero():
    weights = jnp.asarray([[3.0, -2.0, 0.5], [1.0, 4.0, -1.0]])
    value, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(normalize(x) * weights)))(
        jnp.zeros((2, 3))
    )
    assert value == 0
    assert not jnp.any(grad)


@pytest.mark.slow
def test_rows_of_any_length_become_unit_with_the_gradient_of_their_length():
    weights = jnp.asarray([0.3, -0.7])
    for scale in (1e-3, 1e-7, 1e-20, 1e-30, 1e3, 1e14, 1e18, 1e30):
        x = scale * jnp.asarray([[3.0, 4.0]])
        value, grad = jax.value_and_grad(lambda x: jnp.sum(normalize(x) * weights))(x)
        np.testing.assert_allclose(value, 0.3 * 0.6 - 0.7 * 0.8, rtol=1e-5)
        # (I - u uᵀ) w / |x|, of u = (0.6, 0.8)
        expected = (np.array([0.3, -0.7]) - float(value) * np.array([0.6, 0.8])) / (5 * scale)
        np.testing.assert_allclose(grad[0], expected, rtol=1e-4)


def test_half_precision_is_computed_and_returned_in_float32():
    x = jnp.full((1, 4096), 300.0, jnp.float16)  # the squared length overflows float16
    y = normalize(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, 1 / 64, rtol=1e-6)


@pytest.mark.slow
def test_the_unit_scale_is_a_power_of_two_for_the_largest_number():
    x = jnp.asarray([[0.0, -5.0, 3.0], [1e-30, 2e-31, 0.0], [0.0, 0.0, 0.0], [0.25, 0.2, 0.1]])
    np.testing.assert_array_equal(unit_scale(x, axis=1)[:, 0], [1 / 8, 2.0**99, 1, 2])
    np.testing.assert_array_equal(unit_scale(x), [[1 / 8]])
    ends = jnp.asarray([2e38, 2e-38])
    np.testing.assert_array_equal(unit_scale(ends, axis=0), [2.0**-126])
    for end in ends:
        assert 0.25 <= end * unit_scale(end) < 4
    scaled = jnp.max(jnp.abs(x * unit_scale(x, axis=1)), axis=1)
    np.testing.assert_array_equal((scaled >= 0.5) & (scaled < 1), [True, True, False, True])
    slope = jax.grad(lambda x: jnp.sum(x * unit_scale(x)))(x)
    np.testing.assert_array_equal(slope, np.full(x.shape, 1 / 8))  # of a constant factor
