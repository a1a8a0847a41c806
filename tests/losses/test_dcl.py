import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.dcl import dcl


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_matches_the_float64_definition(check, oracle, normal, block_size, sigma):
    def reference(a, b, t):
        n = len(a)
        z = oracle.unit(np.concatenate([a, b]))
        example = np.tile(np.arange(n), 2)
        s = z @ z.T
        cosine = s[np.arange(n), np.arange(n) + n]
        weight = np.ones(n)
        if sigma is not None:
            weight = 2 - np.exp(cosine / sigma) / np.mean(np.exp(cosine / sigma))
        s = np.where(example[:, None] == example, -np.inf, s / t)
        return np.mean(oracle.lse(s)) - np.mean(weight * cosine / t)

    def loss(a, b, t):
        return dcl(a, b, temperature=t, sigma=sigma, block_size=block_size)

    a = normal(0, 6, 5)
    check(loss, reference, a, a + normal(1, 6, 5), 0.1)


def test_one_example_has_no_negatives():
    with pytest.raises(ValueError, match="two examples"):
        dcl(jnp.ones((1, 3)), jnp.ones((1, 3)), temperature=0.1)
