import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.losses.ntxent import nt_xent


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("block_size", [None, 3])
def test_matches_the_float64_definition(check, oracle, normal, temperature, block_size):
    def reference(a, b, t):
        z = oracle.unit(np.concatenate([a, b]))
        s = z @ z.T / t
        np.fill_diagonal(s, -np.inf)
        partner = np.roll(np.arange(len(z)), len(a))
        return np.mean(oracle.lse(s) - s[np.arange(len(z)), partner])

    def loss(a, b, t):
        return nt_xent(a, b, temperature=t, block_size=block_size)

    a = normal(0, 8, 5)
    step = 1e-6 if temperature > 0.1 else 1e-8
    check(loss, reference, a, a + 0.5 * normal(1, 8, 5), temperature, step=step)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 5])
def test_agrees_with_optax(normal, block_size):
    a, b = jnp.asarray(normal(0, 12, 6)), jnp.asarray(normal(1, 12, 6))
    labels = jnp.tile(jnp.arange(12), 2)

    def peer(a, b):
        return jnp.mean(optax.losses.ntxent(jnp.concatenate([a, b]), labels, 0.1))

    def ours(a, b):
        return nt_xent(a, b, temperature=0.1, block_size=block_size)

    value, grads = jax.jit(jax.value_and_grad(ours, (0, 1)))(a, b)
    expected, expected_grads = jax.jit(jax.value_and_grad(peer, (0, 1)))(a, b)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grads, expected_grads, atol=2e-6)


@pytest.mark.slow
def test_each_anchor_and_scale_and_swap(normal):
    a, b = jnp.asarray(normal(0, 7, 4)), jnp.asarray(normal(1, 7, 4))
    each = nt_xent(a, b, temperature=0.3, reduction="none")
    assert each.shape == (14,)
    value = nt_xent(a, b, temperature=0.3)
    np.testing.assert_allclose(value, jnp.mean(each), rtol=1e-6)
    np.testing.assert_allclose(value, nt_xent(b, 5 * a, temperature=0.3), rtol=1e-5)


@pytest.mark.slow
def test_collapsed_and_zero_features_have_finite_gradients():
    for a in (jnp.ones((6, 4)), jnp.zeros((6, 4))):
        for block_size in (None, 4):
            f = jax.value_and_grad(
                lambda a, b=block_size: nt_xent(a, a, temperature=0.01, block_size=b)
            )
            value, grad = jax.jit(f)(a)
            np.testing.assert_allclose(value, np.log(11), rtol=1e-5)
            assert jnp.all(jnp.isfinite(grad))


def test_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="'sum'"):
        nt_xent(jnp.ones((2, 2)), jnp.ones((2, 2)), temperature=0.1, reduction="sum")
