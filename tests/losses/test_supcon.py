import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.ntxent import nt_xent
from rml.losses.supcon import sup_con

LABELS = np.array([3, -1, 3, 8, -1, 3, 8, 5, 3])  # the anchor of label 5 has no positive


def _reference(oracle, z, t, form):
    z = oracle.unit(z)
    s = z @ z.T / t
    np.fill_diagonal(s, -np.inf)
    losses = []
    for i in range(len(z)):
        p = [j for j in range(len(z)) if j != i and LABELS[j] == LABELS[i]]
        if p:
            inside = np.log(np.mean(np.exp(s[i, p] - oracle.lse(s[i]))))
            losses.append(oracle.lse(s[i]) - np.mean(s[i, p]) if form == "out" else -inside)
    return np.mean(losses)


def same(row, col, row_label, col_label):
    return (row != col) & (row_label == col_label)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize(("block_size", "positives"), [(None, None), (2, None), (4, same)])
def test_matches_the_float64_definition(check, oracle, normal, form, block_size, positives):
    def loss(z, t):
        return sup_con(
            z,
            jnp.asarray(LABELS),
            temperature=t,
            form=form,
            positives=positives,
            block_size=block_size,
        )

    check(loss, lambda z, t: _reference(oracle, z, t, form), normal(0, 9, 5), 0.1)


@pytest.mark.slow
def test_two_views_alone_are_nt_xent(normal):
    a, b = jnp.asarray(normal(0, 6, 4)), jnp.asarray(normal(1, 6, 4))
    labels = jnp.tile(jnp.arange(6), 2)

    @jax.jit
    def values(a, b):
        z = jnp.concatenate([a, b])
        ours = [sup_con(z, labels, temperature=0.1, form=form) for form in ("out", "in")]
        return ours, nt_xent(a, b, temperature=0.1)

    ours, expected = values(a, b)
    np.testing.assert_allclose(ours, [expected] * 2, rtol=1e-5)


@pytest.mark.slow
def test_out_bounds_in(normal):
    @jax.jit
    def both(z):
        given = dict(temperature=0.1, reduction="none")
        return [sup_con(z, jnp.asarray(LABELS), form=form, **given) for form in ("out", "in")]

    out, inside = map(np.asarray, both(jnp.asarray(normal(0, 9, 5))))
    assert np.all(out >= inside - 1e-5)  # Jensen, section 3.2.2 of the paper
    assert out[7] == inside[7] == 0


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("form", ["out", "in"])
def test_without_positives_value_and_gradient_are_zero(normal, form, block_size):
    z = jnp.asarray(normal(0, 5, 3))
    f = jax.jit(
        jax.value_and_grad(
            lambda z: sup_con(z, jnp.arange(5), temperature=0.1, form=form, block_size=block_size)
        )
    )
    value, grad = f(z)
    assert value == 0
    assert not jnp.any(grad)


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match="'mean'"):
        sup_con(jnp.ones((2, 2)), jnp.zeros(2, int), temperature=0.1, form="mean")
