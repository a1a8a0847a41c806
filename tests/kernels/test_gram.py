import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF

from rml import kernels
from rml.errors import UserError


def test_length_scale_is_scikit_learns(normal):
    x = normal(0, 7, 4)
    ours = kernels.gram(
        kernels.build("squared_exponential", length_scale=0.7), jnp.asarray(x @ x.T)
    )
    np.testing.assert_allclose(ours, RBF(0.7)(x), atol=1e-12)


@pytest.mark.slow
def test_composition_is_the_kernel_of_the_kernel(normal):
    g = normal(2, 5, 5)
    g = jnp.asarray(g @ g.T)
    both = kernels.compose(kernels.relu, kernels.scaled(kernels.squared_exponential, weight=2.0))
    inner = kernels.gram(kernels.relu, g)
    np.testing.assert_allclose(
        kernels.gram(both, g), 2 * kernels.gram(kernels.squared_exponential, inner), rtol=1e-12
    )


def test_scaled_kernels_have_a_weight_and_a_bias(normal):
    g = normal(3, 4, 4)
    g = jnp.asarray(g @ g.T)
    scaled = kernels.scaled(kernels.linear, weight=3.0, bias=0.5)
    np.testing.assert_allclose(kernels.gram(scaled, g), 3 * g + 0.5, rtol=1e-12)


@pytest.mark.slow
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
    with pytest.raises(UserError, match="kernel 'relu' has no options, got 'length_scale'"):
        kernels.build("relu", length_scale=2.0)
    with pytest.raises(UserError, match="kernel 'relu_tangent' has no options, got 'depth'"):
        kernels.build("relu_tangent", depth=2)
    with pytest.raises(UserError, match="unknown option of kernel 'matern32' 'length_scal'; did"):
        kernels.build("matern32", length_scal=2.0)
    blocks = kernels.input_blocks(jnp.ones((2, 3)), jnp.ones((1, 3)))
    with pytest.raises(UserError, match="unknown normalisation 'locall'"):
        kernels.normalize_blocks(blocks, how="locall")


@pytest.mark.parametrize(
    "name", ["squared_exponential", "matern12", "matern32", "matern52", "rational_quadratic"]
)
@pytest.mark.parametrize("wrong", [0.0, -0.5, np.nan])
def test_scales_that_are_not_above_0_are_named(name, wrong):
    for option in ("length_scale", "alpha") if name == "rational_quadratic" else ("length_scale",):
        with pytest.raises(ValueError, match=f"{option} is {wrong}, expected a number above 0"):
            kernels.gram(kernels.build(name, **{option: wrong}), jnp.eye(2))


def test_no_kernel_no_layer_and_no_coordinate_are_named(normal):
    with pytest.raises(UserError, match="compose takes at least one kernel, got none"):
        kernels.compose()
    with pytest.raises(ValueError, match="depth is -1, expected a number at least 0"):
        kernels.neural_tangent(kernels.relu, depth=-1)
    x = jnp.asarray(normal(8, 3, 0))
    for call in (lambda: kernels.input_gram(x), lambda: kernels.input_blocks(x, x[:2])):
        with pytest.raises(UserError, match=r"inputs have shape \(3, 0\), expected at least one"):
            call()
