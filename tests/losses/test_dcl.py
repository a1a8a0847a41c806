import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.dcl import dcl
from rml.losses.ntxent import nt_xent


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


def test_the_gradient_does_not_fade_where_the_positive_is_close(oracle):
    """An anchor's gradient of NT-Xent is DCL's times the share of the negatives, which fades."""
    temperature, negative = 0.07, np.array([[0.3, 1.0, -0.2, 0.5], [-0.1, 0.2, 1.0, 0.4]])
    first = np.array([1.0, 0.0, 0.0, 0.0])
    sizes = {}
    for cosine in (0.3, 0.95):
        second = cosine * first + np.sqrt(1 - cosine**2) * np.array([0.0, 0.0, 0.0, 1.0])
        a, b = (oracle.unit(np.stack([own, other]))
                for own, other in ((first, negative[0]), (second, negative[1])))  # fmt: skip
        similar = oracle.unit(np.concatenate([a, b])) @ first / temperature
        share = np.exp(oracle.lse(similar[[1, 3]]) - oracle.lse(similar[1:]))
        slopes = [
            jax.jit(jax.grad(lambda a, b, loss=loss: loss(
                a, b, temperature=temperature, reduction="none")[0], (0, 1)))(
                jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
            for loss in (nt_xent, dcl)
        ]  # fmt: skip
        faded, own = (np.stack([np.asarray(x, np.float64) for x in pair]) for pair in slopes)
        np.testing.assert_allclose(faded, share * own, atol=1e-3 * share * np.abs(own).max())
        sizes[cosine] = np.linalg.norm(faded), np.linalg.norm(own)
    assert sizes[0.95][0] < 1e-3 * sizes[0.3][0]
    assert sizes[0.95][1] > 0.3 * sizes[0.3][1]
