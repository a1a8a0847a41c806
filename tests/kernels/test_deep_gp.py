import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import kernels
from rml.kernels import deep_gp, nngp
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels.optimize import fit

SE = kernels.squared_exponential
STATIC = "kernel", "activation"
dgp_units = jax.jit(deep_gp.dgp_units, static_argnames=STATIC)
dgp_grams = jax.jit(deep_gp.dgp_grams, static_argnames=STATIC)
dgp_log_posterior = jax.jit(deep_gp.dgp_log_posterior, static_argnames=(*STATIC, "output_kernel"))


@pytest.mark.slow
def test_the_prior_mean_of_the_first_gram_matrix_is_its_kernel(normal):
    g = kernels.input_gram(jnp.asarray(normal(0, 4, 6)))
    features = jnp.asarray(normal(1, 2000, 4, 3))
    grams = jax.jit(jax.vmap(lambda e: deep_gp.dgp_grams((e,), g, kernel=SE)))(features)[:, 0]
    k = np.asarray(kernels.gram(SE, g))
    # A Wishart mean over 2,000 draws of width 3: Var G_ij = (k_ij² + k_ii k_jj) / 3.
    error = np.sqrt((k**2 + np.outer(np.diag(k), np.diag(k))) / 3 / 2000)
    assert (np.abs(grams.mean(0) - k) < 4.5 * error).all()


@pytest.mark.slow
def test_log_posterior_is_prior_plus_tempered_likelihood(normal):
    g, y = kernels.input_gram(jnp.asarray(normal(2, 3, 5))), jnp.asarray(normal(3, 3, 1))
    features = tuple(jnp.asarray(normal(s, 3, 4)) for s in (4, 5))
    own = kernels.relu
    ours = dgp_log_posterior(features, g, y, kernel=SE, output_kernel=own, noise=0.1, copies=4)
    grams = dgp_grams(features, g, kernel=SE)
    k = np.asarray(kernels.gram(own, grams[-1])) + 0.1 * np.eye(3)
    fitted = -(y.T @ np.linalg.solve(k, y) + np.linalg.slogdet(2 * np.pi * k)[1]) / 2
    expected = 4 * fitted[0, 0] - sum(np.sum(np.asarray(e) ** 2) for e in features) / 2
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


@pytest.mark.slow
def test_networks_have_weights_between_layers(normal):
    g, y = kernels.input_gram(jnp.asarray(normal(2, 3, 5))), jnp.asarray(normal(3, 3, 1))
    features = (jnp.asarray(normal(4, 3, 6)), jnp.asarray(normal(5, 6, 4)))
    options = dict(kernel=SE, activation=jnp.tanh)
    units = dgp_units(features, g, **options)
    first = np.linalg.cholesky(np.asarray(kernels.gram(SE, g))) @ np.asarray(features[0])
    second = np.tanh(first) @ np.asarray(features[1]) / np.sqrt(6)
    np.testing.assert_allclose(units[0], first, rtol=1e-10)
    np.testing.assert_allclose(units[1], second, rtol=1e-10)
    grams = dgp_grams(features, g, **options)
    np.testing.assert_allclose(grams[1], second @ second.T / 4, rtol=1e-10)
    ours = dgp_log_posterior(features, g, y, noise=0.1, copies=4, **options)
    k = np.tanh(second) @ np.tanh(second).T / 4 + 0.1 * np.eye(3)
    fitted = -(y.T @ np.linalg.solve(k, y) + np.linalg.slogdet(2 * np.pi * k)[1]) / 2
    expected = 4 * fitted[0, 0] - sum(np.sum(np.asarray(e) ** 2) for e in features) / 2
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


@pytest.mark.slow
def test_sampled_gram_matrices_approach_the_optimum_as_width_grows(normal):
    pytest.importorskip("blackjax")
    x = normal(6, 4, 3)
    g, y = kernels.input_gram(jnp.asarray(x)), jnp.asarray(np.sin(2 * x.sum(1, keepdims=True)))

    def loss(raw):
        return -dkm.regression_objective(raw, g, y, kernel=SE, widths=jnp.full(1, 2.0), noise=0.05)

    forward = jax.jit(dkm.forward, static_argnames="kernel")
    best = forward(fit(loss, jnp.zeros((1, 4, 4))).params, g, kernel=SE).grams
    distances, means = [], []
    for copies in (2, 32):
        samples = deep_gp.sample_grams(
            jax.random.key(0), g, y, kernel=SE, widths=(2,), noise=0.05, copies=copies,
            chains=2, warmup=200, draws=200,
        )  # fmt: skip
        assert (samples.acceptance > 0.5).all()
        last = jnp.einsum("cdnw,cdmw->cdnm", samples.units, samples.units) / (2 * copies)
        np.testing.assert_allclose(last, samples.grams[:, :, -1], rtol=1e-10)
        distances.append(float(jnp.sqrt(jnp.mean(jnp.sum((samples.grams - best) ** 2, (2, 3, 4))))))
        means.append(samples.grams.mean((0, 1)))
    # Fluctuations fall as N^(-1/2), here by 4; half of that is asked.
    assert distances[1] < distances[0] / 2
    prior = nngp.nngp_grams(g, kernel=SE, depth=1)
    assert jnp.linalg.norm(means[1] - best) < jnp.linalg.norm(means[1] - prior) / 2
