import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.clip import clamp_log_scale, clip_loss
from rml.losses.siglip import siglip_loss


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("scale", [5.0, 95.0])
def test_clip_matches_the_float64_definition(check, oracle, normal, block_size, scale):
    def reference(x, y, t):
        s = np.exp(t) * oracle.unit(x) @ oracle.unit(y).T
        return np.mean(oracle.lse(s) + oracle.lse(s, 0)) / 2 - np.mean(np.diagonal(s))

    def loss(x, y, t):
        return clip_loss(x, y, log_scale=t, block_size=block_size)

    x = normal(0, 8, 5)
    check(loss, reference, x, x + normal(1, 8, 5), np.log(scale), step=1e-7)


def test_an_overshoot_of_clips_temperature_is_clamped_and_keeps_its_gradient(normal):
    x, y = jnp.asarray(normal(0, 4, 3)), jnp.asarray(normal(1, 4, 3))
    grad = jax.jit(jax.grad(lambda t: clip_loss(x, y, log_scale=t)))(6.0)
    assert abs(grad) > 1
    np.testing.assert_allclose(clamp_log_scale(jnp.asarray(6.0)), np.log(100.0), rtol=1e-6)
    assert clamp_log_scale(jnp.asarray(2.5)) == 2.5


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (90.0, 3.0)])
def test_siglip_matches_the_float64_definition(check, oracle, normal, block_size, scale, bias):
    def reference(x, y, t, b):
        s = np.exp(t) * oracle.unit(x) @ oracle.unit(y).T + b
        sign = 2 * np.eye(len(x)) - 1
        return np.sum(np.logaddexp(0, -sign * s)) / len(x)

    def loss(x, y, t, b):
        return siglip_loss(x, y, log_scale=t, bias=b, block_size=block_size)

    x = normal(0, 7, 5)
    check(loss, reference, x, x + normal(1, 7, 5), np.log(scale), bias, step=1e-7)
