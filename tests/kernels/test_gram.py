import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process.kernels import RBF

from rml.errors import UserError
from rml.kernels import gram as kernels


def test_squared_exponential_is_scikit_learns(normal):
    x = normal(0, 7, 4)
    ours = kernels.gram(
        kernels.build("squared_exponential", length_scale=0.7), jnp.asarray(x @ x.T)
    )
    np.testing.assert_allclose(ours, RBF(0.7)(x), atol=1e-12)


def test_relu_is_the_second_moment_of_relu_features(normal):
    """By a sum over the angle of two pre-activations, an independent evaluation."""
    g = normal(1, 3, 3)
    g = g @ g.T
    angles = (np.arange(200_000) + 0.5) * 2 * np.pi / 200_000
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for i, j in ((0, 1), (1, 2), (0, 2)):
        root = np.linalg.cholesky(g[np.ix_([i, j], [i, j])])
        f = np.maximum(root @ circle, 0)
        expected = 2 * 2 * np.mean(f[0] * f[1])  # E r² = 2 for a Gaussian in the plane
        ours = kernels.relu(*(jnp.asarray(value) for value in (g[i, j], g[i, i], g[j, j])))
        np.testing.assert_allclose(ours, expected, rtol=1e-8)
    np.testing.assert_allclose(
        jnp.diagonal(kernels.gram(kernels.relu, jnp.asarray(g))), np.diag(g), rtol=1e-12
    )


def test_composition_is_the_kernel_of_the_kernel(normal):
    g = normal(2, 5, 5)
    g = jnp.asarray(g @ g.T)
    both = kernels.compose(kernels.relu, kernels.scaled(kernels.squared_exponential, weight=2.0))
    inner = kernels.gram(kernels.relu, g)
    np.testing.assert_allclose(
        kernels.gram(both, g), 2 * kernels.gram(kernels.squared_exponential, inner), rtol=1e-12
    )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    name=st.sampled_from(sorted(kernels.KERNELS)),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_gram_matrices_stay_symmetric_and_positive_semidefinite(name, scale, seed):
    with jax.enable_x64(True):
        x = scale * np.random.default_rng(seed).standard_normal((6, 4))
        x[3] = x[2]  # duplicates
        x[5] = 0
        k = np.asarray(kernels.gram(kernels.build(name), kernels.input_gram(jnp.asarray(x))))
    np.testing.assert_allclose(k, k.T, rtol=1e-12)
    assert np.linalg.eigvalsh(k)[0] >= -1e-8 * max(np.trace(k), 1e-300)


@pytest.mark.parametrize("name", sorted(kernels.KERNELS))
def test_gradients_are_finite_differences_also_where_points_coincide(normal, name):
    x = normal(3, 4, 3)
    x[1] = x[0]
    weights = normal(4, 4, 4)

    def value(x):
        return jnp.sum(
            weights * kernels.gram(kernels.build(name), kernels.input_gram(jnp.asarray(x)))
        )

    ours = jax.grad(value)(jnp.asarray(x))
    step = 1e-6
    for i, j in ((0, 0), (1, 2), (3, 1)):
        change = np.zeros_like(x)
        change[i, j] = step
        numeric = (value(x + change) - value(x - change)) / (2 * step)
        np.testing.assert_allclose(ours[i, j], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["none", "global", "local"])
def test_normalised_blocks_are_blocks_of_one_gram_matrix(normal, how):
    z, x = jnp.asarray(normal(5, 4, 3)), jnp.asarray(normal(6, 5, 3))
    blocks = kernels.normalize_blocks(kernels.input_blocks(z, x), how=how)
    g = np.asarray(kernels.input_gram(jnp.concatenate([z, x])))
    norms = {"none": np.ones(9), "global": np.full(9, np.sqrt(np.mean(np.diag(g)[:4])))}
    norm = norms.get(how, np.sqrt(np.diag(g)))
    g = g / np.outer(norm, norm)
    np.testing.assert_allclose(blocks.ii, g[:4, :4], rtol=1e-12)
    np.testing.assert_allclose(blocks.ti, g[4:, :4], rtol=1e-12)
    np.testing.assert_allclose(blocks.t, np.diag(g)[4:], rtol=1e-12)


def test_mistakes_are_named(normal):
    with pytest.raises(UserError, match="did you mean 'relu'"):
        kernels.build("rellu")
    blocks = kernels.input_blocks(jnp.ones((2, 3)), jnp.ones((1, 3)))
    with pytest.raises(UserError, match="unknown normalisation 'locall'"):
        kernels.normalize_blocks(blocks, how="locall")
