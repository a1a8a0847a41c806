import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rml.errors import UserError
from rml.ops import psd


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def spd(seed, n):
    root = np.random.default_rng(seed).standard_normal((n, 2 * n))
    return root @ root.T / n


@pytest.mark.slow
def test_densities_and_divergences_are_scipys():
    a, b, y = spd(0, 4), spd(1, 4), np.random.default_rng(2).standard_normal((4, 3))
    p, q = psd.cholesky(jnp.asarray(a)), psd.cholesky(jnp.asarray(b))
    assert p.jitter == 0
    normal = stats.multivariate_normal(np.zeros(4), a)
    np.testing.assert_allclose(
        psd.gaussian_log_density(jnp.asarray(y), p.factor), normal.logpdf(y.T).sum(), rtol=1e-12
    )
    np.testing.assert_allclose(psd.logdet(p.factor), np.linalg.slogdet(a)[1], rtol=1e-12)
    kl = (np.trace(np.linalg.solve(a, b)) - 4 + np.linalg.slogdet(a)[1]
          - np.linalg.slogdet(b)[1]) / 2  # fmt: skip
    np.testing.assert_allclose(psd.gaussian_kl(q.factor, p.factor), kl, rtol=1e-12)
    assert abs(float(psd.gaussian_kl(p.factor, p.factor))) < 1e-12


def test_a_singular_matrix_gets_the_jitter_that_is_reported():
    a = jnp.ones((5, 5))
    factor, jitter = jax.jit(psd.cholesky)(a)
    assert 0 < jitter < 1e-10
    np.testing.assert_allclose(factor @ factor.T, a + jitter * jnp.eye(5), atol=1e-14)


@pytest.mark.slow
def test_jitter_is_asked_for_as_a_share_of_the_diagonal():
    a = 50 * spd(3, 4)
    factor, jitter = psd.cholesky(jnp.asarray(a), jitter=1e-3)
    np.testing.assert_allclose(jitter, 1e-3 * np.trace(a) / 4, rtol=1e-12)
    np.testing.assert_allclose(factor @ factor.T, a + float(jitter) * np.eye(4), rtol=1e-12)
    # What was asked for stays in every further step of the ladder.
    ones = psd.cholesky(50 * jnp.ones((5, 5)), jitter=1e-18)
    assert 50 * 1e-18 < ones.jitter < 50 * 1e-10
    found = psd.cholesky(jnp.diag(jnp.array([1.0, 1.0, -1e-5])), jitter=4e-6).jitter
    step = 3 * np.finfo(float).eps * 1e11  # the first that is enough
    np.testing.assert_allclose(found, (2 - 1e-5) / 3 * (4e-6 + step), rtol=1e-6)
    # More than a thousandth would be another matrix.
    for lowest in (-0.1, -5e-3, -1.1e-3):  # the ladder's next steps would do for the others
        found = psd.cholesky(jnp.diag(jnp.array([1.0] * 99 + [lowest], jnp.float32)))
        assert found.jitter == np.inf
        assert np.isnan(found.factor).any()
    assert np.isfinite(psd.cholesky(jnp.diag(jnp.array([1.0, -5e-3])), jitter=0.02).jitter)


@pytest.mark.slow
def test_jitter_carries_no_gradient():
    a = spd(4, 3)
    slope = jax.grad(lambda s: psd.logdet(psd.cholesky(s * jnp.asarray(a), jitter=1e-3).factor))
    added = 1e-3 * np.trace(a) / 3 * np.eye(3)
    expected = np.trace(np.linalg.solve(a + added, a))
    assert expected < 3 - 1e-4
    np.testing.assert_allclose(slope(1.0), expected, rtol=1e-10)


@pytest.mark.slow
def test_jitter_stays_differentiable():
    def value(s):
        return psd.logdet(psd.cholesky(jnp.ones((3, 3)) * s + 0.5 * jnp.eye(3)).factor)

    np.testing.assert_allclose(jax.jit(jax.grad(value))(1.0), 3 / 3.5, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.diag([1.0, -2.0]), r"the matrix Q \(2 x 2\) is not positive definite.*condition"),
        (np.diag([1.0, np.nan]), "has 1 entries that are not finite"),
    ],
)
def test_what_cannot_be_mended_is_named(matrix, words):
    with pytest.raises(UserError, match=words):
        psd.require_positive_definite("the matrix Q", jnp.asarray(matrix))
    assert not jnp.isfinite(psd.cholesky(jnp.asarray(matrix)).jitter)
