"""NNCLR against its definition, and that only a neighbour's place depends on its query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.infonce import info_nce
from rml.losses.nnclr import nearest_support, nnclr
from rml.ops.similarity import normalize


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 4])
def test_matches_the_float64_definition(check, oracle, normal, block_size):
    z, support = normal(0, 7, 5), normal(1, 20, 5)
    neighbours = support[np.argmax(oracle.unit(z) @ oracle.unit(support).T, 1)]
    fixed = [jnp.asarray(a, jnp.float32) for a in (z, support)]

    def reference(p, t):
        s = oracle.unit(neighbours) @ oracle.unit(p).T / t
        return np.mean(oracle.lse(s) - np.diagonal(s))

    check(
        lambda p, t: nnclr(fixed[0], p, fixed[1], temperature=t, block_size=block_size),
        reference, z + normal(2, 7, 5), 0.3,
    )  # fmt: skip


def test_neighbours_are_by_cosine_and_take_no_gradient(normal):
    support = jnp.asarray(normal(1, 20, 5))
    # Longer rows are no nearer.
    support = support.at[3].multiply(50.0)
    z, p = 0.2 * support[jnp.array([4, 4, 9])], jnp.asarray(normal(2, 3, 5))
    np.testing.assert_array_equal(nearest_support(z, support), support[jnp.array([4, 4, 9])])
    grads = jax.jit(jax.grad(lambda z, s: nnclr(z, p, s, temperature=0.1), (0, 1)))(z, support)
    assert not any(jnp.any(grad) for grad in grads)


@pytest.mark.slow
def test_a_support_of_the_batch_itself_is_info_nce(normal):
    z, p = jnp.asarray(normal(0, 6, 5)), jnp.asarray(normal(1, 6, 5))
    each = nnclr(z, p, z, temperature=0.2, reduction="none")
    expected = info_nce(normalize(z), normalize(p), temperature=0.2, reduction="none")
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    np.testing.assert_allclose(nnclr(z, p, z, temperature=0.2), each.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="'sum'"):
        nnclr(z, p, z, temperature=0.2, reduction="sum")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_and_equal_rows_have_finite_gradients(dtype):
    for rows in (jnp.zeros((4, 3), dtype), jnp.ones((4, 3), dtype)):
        value, grad = jax.jit(
            jax.value_and_grad(lambda p: nnclr(p, p, p, temperature=0.05))
        )(rows)  # fmt: skip
        np.testing.assert_allclose(value, np.log(4), rtol=1e-3)
        assert bool(jnp.all(jnp.isfinite(grad)))


@pytest.mark.parametrize(("z", "support"), [((5,), (20, 5)), ((7, 5), (5,)), ((7, 5), (20, 4))])
def test_rows_and_their_support_are_of_one_width(unchecked, z, support):
    with pytest.raises(ValueError, match=r"z \(.*\) as \[n, d\], support \(.*\) as \[r, d\]"):
        nearest_support(jnp.ones(z), jnp.ones(support))
