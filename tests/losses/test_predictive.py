"""SimSiam and BYOL against their definitions, and where their gradients stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.predictive import byol, negative_cosine, simsiam


def reference(oracle):
    def d(p, z):
        return -np.sum(oracle.unit(p) * oracle.unit(z), -1)

    return d


def test_simsiam_matches_the_float64_definition(check, oracle, normal):
    d = reference(oracle)
    z = normal(1, 2, 6, 5)
    constant = jnp.asarray(z, jnp.float32)
    check(
        lambda p: simsiam(p, constant),
        lambda p: np.mean(d(p[0], z[1]) / 2 + d(p[1], z[0]) / 2),
        z + normal(0, 2, 6, 5),
    )


def test_simsiam_gives_the_number_of_lightly():
    z = np.random.default_rng(11).standard_normal((4, 6, 5))
    p = z + 0.5 * np.random.default_rng(14).standard_normal(z.shape)
    value = simsiam(jnp.asarray(p[:2], jnp.float32), jnp.asarray(z[:2], jnp.float32))
    # The mean of NegativeCosineSimilarity over both directions, in float64.
    np.testing.assert_allclose(value, 0.1683436230910874, rtol=1e-5)


def test_byol_matches_the_float64_definition(check, oracle, normal):
    z = normal(1, 2, 6, 5)
    constant = jnp.asarray(z, jnp.float32)

    def squares(p):
        apart = oracle.unit(p) - oracle.unit(z[::-1])
        return np.mean(np.sum(apart**2, -1).sum(0))

    check(lambda p: byol(p, constant), squares, z + normal(0, 2, 6, 5))


@pytest.mark.parametrize("loss", [simsiam, byol])
def test_no_gradient_reaches_the_targets_and_examples_are_apart(loss, normal):
    p, z = jnp.asarray(normal(0, 2, 6, 5)), jnp.asarray(normal(1, 2, 6, 5))
    each = loss(p, z, reduction="none")
    assert each.shape == (6,)
    np.testing.assert_allclose(loss(p, z), each.mean(), rtol=1e-5)
    jacobian = jax.jit(jax.jacobian(lambda p, z: loss(p, z, reduction="none"), (0, 1)))(p, z)
    own = np.abs(jacobian[0]).sum((1, 3))  # example of the value, example of the prediction
    assert (np.diag(own) > 0).all()
    assert not own[~np.eye(6, dtype=bool)].any()
    assert not np.any(jacobian[1])
    # The whole pair of views, not one of them twice.
    np.testing.assert_allclose(loss(p[::-1], z[::-1]), loss(p, z), rtol=1e-5)
    np.testing.assert_allclose(loss(3 * p, 0.1 * z), loss(p, z), rtol=1e-5)
    with pytest.raises(ValueError, match="'sum'"):
        loss(p, z, reduction="sum")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_rows_and_equal_rows_have_finite_gradients(dtype):
    for rows, value in ((jnp.zeros((2, 3, 4), dtype), 0.0), (jnp.ones((2, 3, 4), dtype), -1.0)):
        found, grad = jax.jit(jax.value_and_grad(simsiam))(rows, rows)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, value, atol=1e-6)
        assert bool(jnp.all(jnp.isfinite(grad)))
    assert negative_cosine(jnp.eye(3), -jnp.eye(3)) == 1
