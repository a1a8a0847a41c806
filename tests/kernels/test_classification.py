import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_iris

from rml import kernels
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels import layers
from rml.kernels.optimize import fit, minimize
from rml.kernels.outputs import Outputs, log_predictive
from rml.ops.psd import cholesky

SE = kernels.squared_exponential
forward = jax.jit(dkm.forward, static_argnames="kernel")
predict = jax.jit(dkm.predict_outputs, static_argnames="kernel")


@pytest.mark.slow
def test_classification_brings_classes_together_the_more_the_weaker_the_prior(normal):
    x = jnp.asarray(normal(10, 8, 3))
    labels = jnp.array([0, 1] * 4)
    g = kernels.input_gram(x)
    start = {"raw": jnp.zeros((1, 8, 8)), "outputs": Outputs(jnp.zeros((8, 2)), jnp.zeros((8, 8)))}
    same = np.asarray(labels[:, None] == labels)

    def contrast(raw):
        g_1 = np.asarray(forward(raw, g, kernel=SE).grams[0])
        norm = np.sqrt(np.diag(g_1))
        correlation = g_1 / np.outer(norm, norm)
        return correlation[same & ~np.eye(8, dtype=bool)].mean() - correlation[~same].mean()

    @jax.jit  # one program for all widths
    def optimised(width):
        def loss(params):
            return -dkm.classification_objective(
                params["raw"], params["outputs"], g, labels, jax.random.key(0), kernel=SE,
                widths=jnp.full(1, width),
            )  # fmt: skip

        return minimize(loss, start, steps=200, tolerance=1e-6), loss(start)

    contrasts = [contrast(start["raw"])]
    for width in (1.0, 0.01):
        found, before = optimised(width)
        assert found.value < before
        contrasts.append(contrast(found.params["raw"]))
    assert contrasts[0] < contrasts[1] < contrasts[2]
    assert contrasts[2] > contrasts[0] + 0.1


@pytest.mark.slow
def test_classification_predicts_new_flowers():
    """Iris, 30 flowers to learn from: new flowers are classed, by probabilities worth the name."""
    x, labels = load_iris(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    order = np.random.default_rng(0).permutation(150)
    (x, new), (labels, truth) = (np.split(part[order], [30]) for part in (x, labels))
    x, labels, new = jnp.asarray(x), jnp.asarray(labels), jnp.asarray(new)
    g = kernels.input_gram(x)

    def loss(params):
        return -dkm.classification_objective(
            *params, g, labels, jax.random.key(0), kernel=SE, widths=jnp.full(1, 3.0)
        )

    start = jnp.zeros((1, 30, 30)), Outputs(jnp.zeros((30, 3)), jnp.zeros((30, 30)))
    found = fit(loss, start, steps=60)
    mean, variance = predict(*found.params, x, new, kernel=SE)
    logs = np.asarray(log_predictive(jax.random.key(1), mean, variance, samples=100))
    assert (logs.argmax(1) == truth).mean() > 0.85
    assert logs[np.arange(120), truth].mean() > -0.5  # guessing has -1.1
    # At the training points these are the marginals that the objective is made of.
    mean, variance = predict(*found.params, x, x, kernel=SE)
    factor = cholesky(forward(found.params[0], g, kernel=SE).kernel).factor
    root = factor @ layers.triangle(found.params[1].raw)
    np.testing.assert_allclose(mean, factor @ found.params[1].mean, atol=1e-6)
    np.testing.assert_allclose(variance, jnp.sum(root**2, 1), atol=1e-6)
