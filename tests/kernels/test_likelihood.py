"""The likelihood at the edge of single precision, and half precision where matrices are solved."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import attention, kernels
from rml.attention.hyper_samples import HyperSettings, log_floor
from rml.kernels.outputs import output_marginals
from rml.ops import cholesky, noisy_log_density, psd


@pytest.fixture
def duplicates(normal):
    """Points twice over, their targets and kernel matrix, in single precision."""
    x = normal(0, 40, 3)
    x[20:] = x[:20]
    y = np.sin(x[:, :1]).astype(np.float32)
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 2).astype(np.float32)
    return jnp.asarray(y), jnp.asarray(k)


def density(y, k, noise):
    return kernels.log_marginal_likelihood(k, y, noise=noise)


slopes = jax.jit(jax.value_and_grad(density, (0, 1, 2)))
together = jax.jit(jax.vmap(density, (None, 0, None)))


def precise(function, *args):
    return function(*(jnp.asarray(np.asarray(x), jnp.float64) for x in args))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-7, 1e-6, 1e-5, 0.1])
def test_duplicates_at_little_noise_have_the_likelihood_of_double_precision(duplicates, noise):
    given = *duplicates, jnp.float32(noise)
    (ours, gradients), (exact, expected) = slopes(*given), precise(slopes, *given)
    values = np.maximum(np.linalg.eigvalsh(np.asarray(given[1], np.float64)), 0) + float(given[2])
    log_det = np.sum(np.log(values))
    square = np.sum(np.asarray(given[0], np.float64) * np.linalg.solve(
        np.asarray(given[1], np.float64) + float(given[2]) * np.eye(40), given[0]))  # fmt: skip
    np.testing.assert_allclose(exact, -(square + log_det + 40 * np.log(2 * np.pi)) / 2, rtol=1e-6)
    np.testing.assert_allclose(ours, exact, atol=0.01)
    for a, b in zip(
        gradients[1:], expected[1:], strict=True
    ):  # by targets it is rounding of 1 / noise
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())
    twice = together(given[0], jnp.stack([given[1]] * 2), given[2])
    np.testing.assert_allclose(twice, ours, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_by_eigenvalues_are_those_by_cholesky(normal):
    """Of both orders: noise far from rounding, and eigenvalues all the same."""
    root = normal(1, 5, 9)
    k, y = jnp.asarray(root @ root.T), jnp.asarray(normal(2, 5, 2))
    direction = jnp.asarray(normal(3, 5, 5))
    direction = direction + direction.T

    def along(function):
        def value(t, y, noise):
            return function(y, k + t * direction, noise)

        slope = jax.grad(value, (0, 1, 2))
        return slope(0.01, y, 0.3), jax.jvp(slope, (0.01, y, 0.3), (1.0, 0.5 * y, 0.2))[1]

    def spectral(y, k, noise):
        values, vectors = psd._spectrum(k, jnp.asarray(True))
        return psd._spectral_log_density(y, k, jnp.asarray(noise), values, vectors)

    ours = jax.jit(lambda: along(spectral))()
    expected = jax.jit(
        lambda: along(lambda *given: noisy_log_density(*given[:2], noise=given[2]))
    )()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_what_is_not_positive_definite_is_not_a_number():
    k = jnp.diag(jnp.array([1.0, -0.5]))
    assert np.isnan(jax.jit(density)(jnp.ones((2, 1)), k, 0.1))


HALF = jnp.bfloat16
SOLVERS = {
    "cholesky": lambda k, y: cholesky(k).factor,
    "likelihood": lambda k, y: density(y, k, 0.1),
    "prediction": lambda k, y: kernels.gp_predict(
        kernels.Blocks(k, k, jnp.diagonal(k)), y, noise=0.1
    ),
    "solve_ridge": lambda k, y: attention.solve_ridge(k, y, 0.1),
    "solve_min_norm": attention.solve_min_norm,
    "fit_ridge": lambda k, y: attention.fit_ridge(k, y, regularization=0.1),
    "fit without penalty": lambda k, y: attention.fit_ridge(k, y, regularization=None),
    "leave_one_out": lambda k, y: attention.leave_one_out(k, y, jnp.array([0.1], jnp.float32)),
    "leave_one_out_primal": lambda k, y: attention.leave_one_out_primal(
        k[:, :2], y, jnp.array([0.1], jnp.float32)
    ),
    "solve_prefixes": lambda k, y: attention.solve_prefixes(k, y, 0.1, (2, 4)),
    "streamed_gram": lambda k, y: attention.streamed_gram(lambda w, x: x, k[:2], y),
    "rfa_kernel": lambda k, y: attention.rfa_kernel(k, k[:, None], k, k[:, None]),
    "biased rfa_kernel": lambda k, y: attention.rfa_kernel(
        k, k[:, None], k, k[:, None], biased=True
    ),
    "rf_mlp_kernel": lambda k, y: attention.rf_mlp_kernel(k, k[:, None], k, k[:, None]),
    "rfa_features": lambda k, y: attention.rfa_features(
        k, k[:, None], jnp.pad(k, ((0, 1), (1, 0)))[None]
    ),
    "rf_mlp_features": lambda k, y: attention.rf_mlp_features(
        k, k[:, None], jnp.concatenate([k, k[::-1], k[:, :1]], axis=1)
    ),
    "positive_features": lambda k, y: attention.positive_features(k, k),
    "hardness": lambda k, y: attention.hardness(k, k),
    "log_floor": lambda k, y: log_floor(
        k[None], k, jnp.ones(4, bool), jnp.array([0.1, 0.6]), HyperSettings(kappa=3.0), 0.7
    ),
    "input_gram": lambda k, y: kernels.input_gram(k),
    "input_blocks": lambda k, y: kernels.input_blocks(k, k),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision_is_promoted(normal, name):
    root = normal(0, 4, 6)
    k, y = (jnp.asarray(x, HALF) for x in (root @ root.T / 6, normal(1, 4, 2)))
    # A compiler may keep digits of half precision that one operation at a time rounds off.
    solve = jax.jit(SOLVERS[name], compiler_options={"xla_allow_excess_precision": False})
    ours = jax.tree.leaves(solve(k, y))
    wider = solve(k.astype(jnp.float32), y.astype(jnp.float32))
    for a, b in zip(ours, jax.tree.leaves(wider), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@partial(jax.jit, static_argnames="kernel")
def predicted(kernel, x, t, noise):
    blocks = kernels.gram_blocks(kernel, kernels.input_blocks(x, t))
    found = kernels.gp_predict(blocks, jnp.sin(x), noise=noise)
    return found.variance, kernels.gaussian_log_likelihood(found, jnp.sin(t), noise=noise)


@pytest.mark.slow
def test_variances_are_above_zero_where_all_is_known():
    x = jnp.linspace(-3, 3, 200, dtype=jnp.float32)[:, None]
    t = jnp.linspace(-3, 3, 77, dtype=jnp.float32)[:, None]
    for kernel, noise in (
        (kernels.build("squared_exponential", length_scale=0.3), 1e-6),
        (kernels.build("relu"), 1e-6),
    ):
        variance, likelihood = predicted(kernel, x, t, noise)
        assert (variance >= 0).all()
        assert jnp.isfinite(likelihood)
    outputs = kernels.Outputs(jnp.ones((40, 3), x.dtype), -8 * jnp.eye(40, dtype=x.dtype))
    blocks = kernels.gram_blocks(kernel, kernels.input_blocks(x[:40], x[:40]))
    assert (jax.jit(output_marginals)(blocks, outputs).variance >= 0).all()
