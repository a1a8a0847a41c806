"""The neural tangent kernel: of finite wide networks, of linear ones, and its recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import kernels


def tangent_of_a_network(key, x, *, depth, width):
    """Inner products of the gradients of a finite ReLU network's output by its weights."""
    sizes = [x.shape[1], *[width] * depth, 1]
    weights = [
        jax.random.normal(k, (a, b))
        for k, a, b in zip(jax.random.split(key, depth + 1), sizes[:-1], sizes[1:], strict=True)
    ]

    def output(weights, x):
        h = x @ weights[0] / jnp.sqrt(len(x))
        for w in weights[1:]:
            h = jnp.sqrt(2 / len(w)) * jax.nn.relu(h) @ w
        return h[0]

    slopes = jax.vmap(jax.grad(output), (None, 0))(weights, x)
    return sum(jnp.einsum("iab,jab->ij", s, s) for s in slopes)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
def test_wide_networks_have_it(normal, depth):
    x = normal(0, 4, 3)
    x[1] = -x[0] + 0.1
    x = jnp.asarray(x)
    one = jax.jit(lambda key: tangent_of_a_network(key, x, depth=depth, width=400))
    draws = np.stack([one(key) for key in jax.random.split(jax.random.key(0), 12)])
    ours = kernels.gram(kernels.neural_tangent(kernels.relu, depth=depth), kernels.input_gram(x))
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - ours) <= 5 * error + 0.01 * np.abs(ours)).all()
    nngp = kernels.nngp_grams(kernels.input_gram(x), kernel=kernels.relu, depth=depth)[-1]
    assert (np.abs(draws.mean(0) - nngp) > 5 * error + 0.01 * np.abs(ours)).any()


def test_linear_networks_have_a_share_for_every_layer(normal):
    g = kernels.input_gram(jnp.asarray(normal(1, 5, 3)))
    tangent = kernels.gram(kernels.neural_tangent(kernels.linear, depth=3), g)
    np.testing.assert_allclose(tangent, 4 * g, rtol=1e-12)
    none = kernels.gram(kernels.neural_tangent(kernels.relu, depth=0), g)
    np.testing.assert_allclose(none, g, rtol=1e-12)


@pytest.mark.slow
def test_its_blocks_predict_as_the_whole(normal):
    x = jnp.asarray(normal(2, 7, 3))
    kernel = kernels.neural_tangent(kernels.relu, depth=2)
    blocks = kernels.gram_blocks(kernel, kernels.input_blocks(x[:4], x[4:]))
    whole = np.asarray(kernels.gram(kernel, kernels.input_gram(x)))
    y = normal(3, 4, 1)
    found = kernels.gp_predict(blocks, jnp.asarray(y), noise=0.1)
    mean = whole[4:, :4] @ np.linalg.solve(whole[:4, :4] + 0.1 * np.eye(4), y)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
