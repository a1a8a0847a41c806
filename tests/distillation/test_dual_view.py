"""Views of features against a cosine transform in float64, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn, idctn

from rml.distillation import dual_view, mimic

B, SIDE, D = 2, 3, 4
RNG = np.random.default_rng(0)
A, T, DIRECTION = RNG.standard_normal((3, B, SIDE * SIDE, D)) + 0.7


def without_constant(x):
    """The alternative view as the paper makes it: the coefficient of frequency 0 is removed."""
    maps = x.reshape(B, SIDE, SIDE, D)
    coefficients = dctn(maps, axes=(1, 2))
    coefficients[:, 0, 0] = 0
    return idctn(coefficients, axes=(1, 2)).reshape(x.shape)


def reference(a, t, remove_mean):
    a, t = (without_constant(x) if remove_mean else x for x in (a, t))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, t)]
    return ((unit[0] - unit[1]) ** 2).sum(-1).mean(-1)


def run(a, t, remove_mean, dtype=jnp.float32):
    def total(a, t):
        each = mimic(a, t, remove_mean=remove_mean)
        return jnp.sum(each * jnp.arange(1.0, 1 + len(each))), each

    (_, each), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(
        jnp.asarray(a, dtype), jnp.asarray(t, dtype)
    )
    return each, *gradients


@pytest.mark.slow
@pytest.mark.parametrize("remove_mean", [False, True])
def test_value_and_gradient_are_those_of_the_transform(remove_mean):
    each, ours, theirs = run(A, T, remove_mean)
    np.testing.assert_allclose(each, reference(A, T, remove_mean), rtol=1e-5)
    step, weights = 1e-6, np.arange(1, 1 + B)
    ends = [weights @ reference(A + s * step * DIRECTION, T, remove_mean) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(np.sum(np.asarray(ours) * DIRECTION), slope, rtol=1e-4)
    np.testing.assert_array_equal(theirs, 0)


@pytest.mark.slow
def test_the_direct_view_is_twice_one_minus_the_cosine():
    cosines = (A * T).sum(-1) / np.linalg.norm(A, axis=-1) / np.linalg.norm(T, axis=-1)
    np.testing.assert_allclose(run(A, T, False)[0], 2 * (1 - cosines).mean(-1), rtol=1e-5)


@pytest.mark.slow
def test_what_a_view_does_not_see():
    scales = RNG.uniform(0.5, 2, (B, SIDE * SIDE, 1))
    np.testing.assert_allclose(run(A * scales, T, False)[0], run(A, T, False)[0], rtol=1e-5)
    shift = RNG.standard_normal((B, 1, D))
    np.testing.assert_allclose(run(A + shift, T, True)[0], run(A, T, True)[0], rtol=1e-5)
    assert np.abs(run(A + shift, T, False)[0] - run(A, T, False)[0]).min() > 1e-3
    for remove_mean in (False, True):
        np.testing.assert_allclose(run(A, A, remove_mean)[0], 0, atol=1e-6)
        np.testing.assert_allclose(run(-A, A, remove_mean)[0], 4, rtol=1e-5)


@pytest.mark.slow
def test_constant_maps_have_no_alternative_view_and_finite_gradients():
    # A third is no binary fraction: its rounded mean lies beside it.
    flat = np.full((B, SIDE * SIDE, D), 1 / 3)
    for a, expected in ((flat, 1.0), (0 * flat, 1.0)):
        each, gradient, _ = run(a, T, True)
        np.testing.assert_allclose(each, expected, rtol=1e-6)
        assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(run(flat, flat, True)[0], 0)
    each, gradient, _ = run(0 * flat, T, False)
    np.testing.assert_allclose(each, 1, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_half_precision_computes_in_single():
    a, t = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (A, T))
    for remove_mean in (False, True):
        each, gradient, _ = run(a, t, remove_mean, jnp.bfloat16)
        assert each.dtype == jnp.float32
        np.testing.assert_allclose(each, reference(a, t, remove_mean), rtol=1e-4)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_each_view_has_its_weight():
    views = jnp.asarray(np.stack([A, T[::-1]]), jnp.float32)
    found = dual_view(views, jnp.asarray(T, jnp.float32), direct=3.0, alternative=0.5)
    expected = 3 * reference(A, T, False) + 0.5 * reference(T[::-1], T, True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 9, 4\).*\(2, 9, 3\)"):
        mimic(jnp.zeros((2, 9, 4)), jnp.zeros((2, 9, 3)))
