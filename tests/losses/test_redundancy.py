from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.barlow_twins import barlow_twins
from rml.losses.vicreg import vicreg


def test_vicreg_matches_numpy(check, normal):
    def reference(a, b):
        total = 25 * np.mean((a - b) ** 2)
        for z in (a, b):
            cov = np.cov(z, rowvar=False)
            total += 25 * np.mean(np.maximum(0, 1 - np.sqrt(np.diagonal(cov) + 1e-4)))
            total += np.sum((cov - np.diag(np.diagonal(cov))) ** 2) / z.shape[1]
        return total

    a = 0.7 * normal(0, 9, 4)
    check(vicreg, reference, a, a + 0.3 * normal(1, 9, 4))


def test_barlow_twins_matches_numpy(check, normal):
    def reference(a, b):
        c = np.corrcoef(a, b, rowvar=False)[:4, 4:]
        off = c - np.diag(np.diagonal(c))
        return np.sum((1 - np.diagonal(c)) ** 2) + 5e-3 * np.sum(off**2)

    a = normal(0, 9, 4)
    check(barlow_twins, reference, a, a + normal(1, 9, 4))


def test_weights_and_floors_are_where_the_equations_have_them(check, normal):
    def vicreg_reference(a, b):
        total = 3 * np.mean((a - b) ** 2)
        for z in (a, b):
            cov = np.cov(z, rowvar=False)
            variance = np.diagonal(cov)
            total += 5 * np.mean(np.maximum(0, 1 - np.sqrt(variance + 0.2)))
            total += 7 * np.sum((cov - np.diag(variance)) ** 2) / z.shape[1]
        return total

    def barlow_reference(a, b):
        def floored(z):
            z = z - z.mean(0)
            return z / np.sqrt(np.maximum(z.var(0), 0.3))

        c = floored(a).T @ floored(b) / len(a)
        off = c - np.diag(np.diagonal(c))
        return np.sum((1 - np.diagonal(c)) ** 2) + 0.4 * np.sum(off**2)

    a = normal(4, 9, 4) * np.array([0.3, 0.8, 0.4, 1.5])
    b = a + 0.3 * normal(5, 9, 4)
    options = dict(invariance=3.0, variance=5.0, covariance=7.0, eps=0.2)
    check(partial(vicreg, **options), vicreg_reference, a, b)
    check(partial(barlow_twins, redundancy=0.4, eps=0.3), barlow_reference, a, b)


def test_barlow_twins_does_not_take_the_rounding_of_constants_for_correlation(normal):
    a = jnp.full((250, 8), 33.3) * (1 + 0.1 * jnp.arange(8))
    assert barlow_twins(a, a) == 8
    narrow = jnp.asarray(33.3 + 1e-3 * normal(0, 250, 8), jnp.float32)  # narrow, not constant
    assert barlow_twins(narrow, narrow) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("loss", [vicreg, barlow_twins])
def test_collapse_is_penalised_with_finite_gradients(loss):
    a = jnp.ones((5, 3))
    value, grad = jax.jit(jax.value_and_grad(loss))(a, a)
    assert value > 2
    assert jnp.all(jnp.isfinite(grad))
    with pytest.raises(ValueError, match="two rows"):
        loss(a[:1], a[:1])


@pytest.mark.parametrize("loss", [vicreg, barlow_twins])
@pytest.mark.parametrize("eps", [0.0, -1e-3, np.nan])
def test_variances_have_a_floor_above_0(loss, eps, normal):
    a = jnp.asarray(normal(0, 5, 3))
    with pytest.raises(ValueError, match=f"^eps is {eps}, expected a number above 0"):
        loss(a, a, eps=eps)
