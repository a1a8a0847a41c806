"""What every kernel of the table owes: a new row needs an entry of `ROWS` and inherits the rest."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import RBF, Matern, RationalQuadratic

from rml import kernels

NAMES = sorted(kernels.KERNELS)


class Row(NamedTuple):
    """What is known of a kernel.

    Attributes:
      exact: `exact(x)` is its Gram matrix of the rows of x in float64, evaluated in another way.
      features: `features(x, w, b)` of one draw w ~ N(0, I) and b ~ U[0, 2π), whose products have
        the kernel as their mean.
      diagonal: Its value at a point of squared norm v > 0.
      degree: It grows as the Gram matrix to this power; None where it does not.
      at_zero: Its value where one of two points is zero, from the other's squared norm.
      kink: Whether it has a kink where points coincide, near which half the digits are lost.
    """

    exact: Callable
    features: Callable
    diagonal: Callable
    degree: float | None
    at_zero: Callable = np.zeros_like
    kink: bool = False


def relu_by_angles(x):
    """Twice the second moment of ReLU features, summed over the angle of two pre-activations."""
    angles = (np.arange(200_000) + 0.5) * 2 * np.pi / 200_000
    circle = np.stack([np.cos(angles), np.sin(angles)])
    found = np.zeros((len(x), len(x)))
    for i, j in np.ndindex(found.shape):
        # Both points in their own plane; E r² = 2 for a Gaussian in it.
        plane = np.linalg.qr(x[[i, j]].T, mode="r")
        f = np.maximum(plane.T @ circle, 0)
        found[i, j] = 2 * 2 * np.mean(f[0] * f[1])
    return found


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def relu_tangent_by_angles(x):
    """One hidden layer: its kernel, and the share of directions in which both points are active."""
    angles = np.arccos(np.clip(unit(x) @ unit(x).T, -1, 1))
    return relu_by_angles(x) + (1 - angles / np.pi) * (x @ x.T)


def waves(draw):
    """Features √2 cos(z w·x + b): z, of `draw(rng, size)`, mixes squared exponentials by length."""

    def features(x, w, b):
        z = draw(np.random.default_rng(7), len(b))
        return np.sqrt(2) * np.cos(x @ w * z + b)

    return features


def stationary(peer, at_zero, draw, kink=False):
    return Row(peer, waves(draw), lambda v: 1.0, None, at_zero, kink)


def student(nu):
    return lambda rng, size: np.sqrt(2 * nu / rng.chisquare(2 * nu, size))


ROWS = {
    "linear": Row(lambda x: x @ x.T, lambda x, w, b: x @ w, lambda v: v, 1),
    "squared_exponential": stationary(
        RBF(1.0), lambda v: np.exp(-v / 2), lambda rng, size: np.ones(size)
    ),
    "matern12": stationary(Matern(nu=0.5), lambda v: np.exp(-np.sqrt(v)), student(0.5), kink=True),
    "matern32": stationary(
        Matern(nu=1.5), lambda v: (1 + np.sqrt(3 * v)) * np.exp(-np.sqrt(3 * v)), student(1.5)
    ),
    "matern52": stationary(
        Matern(nu=2.5),
        lambda v: (1 + np.sqrt(5 * v) + 5 * v / 3) * np.exp(-np.sqrt(5 * v)),
        student(2.5),
    ),
    "rational_quadratic": stationary(
        RationalQuadratic(),
        lambda v: 1 / (1 + v / 2),
        lambda rng, size: np.sqrt(rng.gamma(1, 1, size)),
    ),
    "relu": Row(relu_by_angles, lambda x, w, b: np.sqrt(2) * np.maximum(x @ w, 0), lambda v: v, 1),
    "relu_tangent": Row(
        relu_tangent_by_angles,
        lambda x, w, b: (
            np.concatenate(
                [np.maximum(x @ w, 0), *((x @ w > 0) * column[:, None] for column in x.T)], axis=1
            )
            * np.sqrt(2)
        ),
        lambda v: 2 * v,
        1,
        kink=True,
    ),
    "linear_normalized": Row(
        lambda x: unit(x) @ unit(x).T, lambda x, w, b: unit(x) @ w, lambda v: 1.0, 0
    ),
    "relu_normalized": Row(
        lambda x: relu_by_angles(unit(x)),
        lambda x, w, b: np.sqrt(2) * np.maximum(unit(x) @ w, 0),
        lambda v: 1.0,
        0,
    ),
}


def gram_of(name, x, **options):
    x = jnp.asarray(x)
    return kernels.gram(kernels.build(name, **options), x @ x.T)


def points(normal, seed=0, scale=1.0):
    """Seven points: 1 is a copy of 0, 2 its opposite, 3 nearly its copy, 4 is longer."""
    x = scale * normal(seed, 7, 3)
    x[1], x[2], x[3], x[4] = x[0], -x[0], x[0] * (1 + 1e-9), 3 * x[4]
    return x


def test_every_kernel_is_examined():
    assert set(ROWS) == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_an_independent_evaluation(normal, name):
    x = points(normal)
    close = 1e-7 if ROWS[name].kink else 1e-8
    np.testing.assert_allclose(gram_of(name, x), ROWS[name].exact(x), rtol=close, atol=close)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_mean_of_products_of_random_features(normal, name):
    x, draws = points(normal, 1), 100_000
    w, b = normal(2, 3, draws), np.random.default_rng(3).uniform(0, 2 * np.pi, draws)
    phi = ROWS[name].features(x, w, b).reshape(len(x), -1, draws)  # several features a draw
    products = np.einsum("ifd,jfd->ijd", phi, phi)
    mean, error = products.mean(2), products.std(2) / np.sqrt(draws)
    assert (np.abs(gram_of(name, x) - mean) <= 5 * error + 1e-12).all()


@pytest.mark.slow
@settings(max_examples=25, derandomize=True)
@given(name=st.sampled_from(NAMES), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_gram_matrices_stay_symmetric_and_positive_semidefinite(name, scale, seed):
    with jax.enable_x64(True):
        x = scale * np.random.default_rng(seed).standard_normal((6, 4))
        x[3] = x[2]  # duplicates
        x[5] = 0
        k = np.asarray(kernels.gram(kernels.build(name), kernels.input_gram(jnp.asarray(x))))
    np.testing.assert_allclose(k, k.T, rtol=1e-12)
    assert np.linalg.eigvalsh(k)[0] >= -1e-8 * max(np.trace(k), 1e-300)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_diagonals_are_known_and_a_zero_point_stays_apart(normal, name):
    x = points(normal)
    x[5] = 0
    k, norms = np.asarray(gram_of(name, x)), np.sum(x**2, axis=1)
    expected = [ROWS[name].diagonal(v) if v else None for v in norms]
    keep = norms > 0
    np.testing.assert_allclose(np.diag(k)[keep], np.array(expected)[keep].astype(float), rtol=1e-12)
    np.testing.assert_allclose(k[5], ROWS[name].at_zero(norms), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_points_does_not_matter(normal, name):
    x, order = points(normal), np.array([3, 0, 6, 2, 5, 1, 4])
    g = jnp.asarray(x @ x.T)
    k = kernels.gram(kernels.build(name), g)
    permuted = kernels.gram(kernels.build(name), g[order][:, order])
    np.testing.assert_array_equal(permuted, k[order][:, order])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_parts_of_the_whole(normal, name):
    kernel = kernels.build(name)

    @jax.jit
    def both(x):
        blocks = kernels.gram_blocks(kernel, kernels.input_blocks(x[:3], x[3:]))
        return kernels.gram(kernel, kernels.input_gram(x)), blocks

    whole, blocks = both(points(normal))
    np.testing.assert_allclose(blocks.ii, whole[:3, :3], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(blocks.ti, whole[3:, :3], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(blocks.t, jnp.diagonal(whole)[3:], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scaling_of_the_points_is_homogeneous_or_a_length_scale(normal, name):
    x, scale = points(normal), 2.5
    scaled, degree = gram_of(name, np.sqrt(scale) * x), ROWS[name].degree
    if degree is None:
        expected = gram_of(name, x, length_scale=1 / np.sqrt(scale))
    else:
        expected = scale**degree * gram_of(name, x)
    np.testing.assert_allclose(scaled, expected, rtol=1e-7, atol=1e-7 if ROWS[name].kink else 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transformations_change_nothing(normal, name):
    kernel = kernels.build(name)
    grams = jnp.stack([jnp.asarray(x @ x.T) for x in (points(normal, s) for s in (4, 5, 6))])
    one_by_one = jnp.stack([kernels.gram(kernel, g) for g in grams])
    together = jax.jit(jax.vmap(lambda g: kernels.gram(kernel, g)))(grams)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences_also_where_points_coincide(normal, name):
    x = normal(3, 4, 3)
    x[1] = x[0]
    weights = normal(4, 4, 4)

    @jax.jit
    @jax.value_and_grad
    def slope(x):
        return jnp.sum(weights * kernels.gram(kernels.build(name), kernels.input_gram(x)))

    ours = slope(x)[1]
    step = 3e-5  # a kink where points coincide has slope 0 for central differences
    for i, j in ((0, 0), (1, 2), (3, 1)):
        change = np.zeros_like(x)
        change[i, j] = step
        numeric = (slope(x + change)[0] - slope(x - change)[0]) / (2 * step)
        np.testing.assert_allclose(ours[i, j], numeric, rtol=1e-4, atol=1e-6)


@partial(jax.jit, static_argnames="name")  # one program for all scales
def gram_and_slope(x, name):
    def total(x):
        k = kernels.gram(kernels.build(name), x @ x.T)
        return jnp.sum(k.astype(jnp.float32)), k

    (_, k), slope = jax.value_and_grad(total, has_aux=True)(x)
    return k, slope


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_finite_at_the_edges(normal, name, scale, dtype):
    x = points(normal, scale=scale)
    x[5] = 0

    k, grads = gram_and_slope(jnp.asarray(x, dtype), name)
    assert k.dtype == jnp.promote_types(dtype, jnp.float32)
    assert grads.dtype == dtype
    assert np.isfinite(np.asarray(k, np.float64)).all()
    assert np.isfinite(np.asarray(grads, np.float64)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 0.1)])
@pytest.mark.parametrize("name", NAMES)
def test_less_precision_gives_the_same_up_to_rounding(normal, name, dtype, tolerance):
    """Relative to the largest entry; near copies lose half of the digits to the arc cosine."""
    x = points(normal)
    exact = np.asarray(gram_of(name, x))
    rounded = np.asarray(gram_of(name, jnp.asarray(x, dtype)), np.float64)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=tolerance * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_promoted_before_anything_is_computed(normal, name):
    g = jnp.asarray(points(normal) @ points(normal).T, jnp.bfloat16)
    kernel = kernels.build(name)
    blocks = kernels.Blocks(g[:3, :3], g[3:, :3], jnp.diagonal(g)[3:])
    wider = kernels.Blocks(*(part.astype(jnp.float32) for part in blocks))
    found = jax.tree.leaves((kernels.gram(kernel, g), kernels.gram_blocks(kernel, blocks)))
    exact = (kernels.gram(kernel, g.astype(jnp.float32)), kernels.gram_blocks(kernel, wider))
    for ours, expected in zip(found, jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, expected)


SMOOTH = ("relu", "squared_exponential", "matern32", "matern52", "rational_quadratic")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_are_finite_differences_also_where_points_coincide(normal, name):
    x, weights = normal(3, 4, 2), normal(4, 4, 4)
    x[1], x[2] = x[0], -x[0]

    @jax.jit
    def curve(x):
        slope = jax.grad(
            lambda x: jnp.sum(weights * kernels.gram(kernels.build(name), kernels.input_gram(x)))
        )
        return slope(x), jax.jacfwd(slope)(x)

    hessian = curve(x)[1]
    step = 1e-5
    for i, j in ((0, 0), (1, 1), (2, 0), (3, 1)):
        change = np.zeros_like(x)
        change[i, j] = step
        numeric = (curve(x + change)[0] - curve(x - change)[0]) / (2 * step)
        np.testing.assert_allclose(hessian[:, :, i, j], numeric, rtol=1e-3, atol=2e-4)


@jax.jit  # one program for all scales
def curve_of_relu(x, direction):
    def value(x):
        return jnp.sum(kernels.gram(kernels.relu, kernels.input_gram(x)))

    return jax.jvp(jax.grad(value), (x,), (direction,))[1]


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e6])
def test_second_derivatives_of_the_relu_kernel_are_finite_at_zero_and_single_precision(
    normal, scale
):
    x = points(normal, scale=scale)
    x[5] = 0
    along = curve_of_relu(np.float32(x), np.float32(normal(9, *x.shape)))
    assert along.dtype == np.float32
    assert np.isfinite(along).all()


@pytest.mark.slow
def test_a_zero_point_has_the_slope_of_central_differences(normal):
    x, zero = jnp.asarray(normal(1, 3)), jnp.zeros(3)

    def value(y):
        return kernels.relu(x @ y, x @ x, y @ y)

    np.testing.assert_allclose(jax.grad(value)(zero), x / 2, rtol=1e-12)
    y = 1e-6 * jnp.asarray(normal(2, 3))
    np.testing.assert_allclose(value(y) - value(-y), 2 * y @ x / 2, rtol=1e-9)
