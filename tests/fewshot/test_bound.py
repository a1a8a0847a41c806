"""The bound optimiser: its update, and that its energy never rises where the theorem says so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.fewshot.bound import bound_updates, energy, step_size

N, C = 12, 3


def graph(kind, rng):
    """An affinity matrix of a kind, and a random problem's unary costs and start."""
    x = rng.standard_normal((N, 4))
    d2 = ((x[:, None] - x[None]) ** 2).sum(2)
    if kind == "kernel":
        return np.exp(-d2 / 2)
    if kind == "signed":
        w = rng.standard_normal((N, N))
        return w + w.T
    near = np.argsort(d2 + 1e9 * np.eye(N), axis=1)[:, :3]
    w = np.zeros((N, N))
    np.put_along_axis(w, near, 1.0, axis=1)
    return w.T if kind == "directed" else (w + w.T) / 2


@partial(jax.jit, static_argnames="damped")
def energies(z, unary, w, lam, t, damped):
    """E before and after each of 25 updates."""
    step = step_size(w, laplacian_weight=lam, temperature=t) if damped else 1.0
    value = partial(energy, unary=unary, affinity=w, laplacian_weight=lam, temperature=t)

    def update(z, _):
        new, _ = bound_updates(z, unary, w, laplacian_weight=lam, temperature=t, step=step, steps=1)
        return new, value(new)

    return jnp.concatenate([value(z)[None], jax.lax.scan(update, z, None, length=25)[1]])


def rise(kind, seed, lam, t, damped):
    """The largest rise of E in an update, over E's own scale."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        w = graph(kind, rng)
        unary = 3 * rng.random((C, N))
        z = rng.dirichlet(np.ones(C), N).T
        values = np.asarray(energies(*map(jnp.asarray, (z, unary, w)), lam, t, damped))
    return np.max(np.diff(values)) / (1 + np.max(np.abs(values)))


@settings(max_examples=60, derandomize=True)
@given(
    kind=st.sampled_from(["knn", "kernel", "signed"]),
    seed=st.integers(0, 10_000),
    lam=st.floats(0, 20),
    t=st.floats(0.02, 5),
)
def test_energy_never_rises_for_any_symmetric_graph(kind, seed, lam, t):
    assert rise(kind, seed, lam, t, damped=True) <= 1e-12


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10_000), lam=st.floats(0, 20), t=st.floats(0.02, 5))
def test_the_full_step_never_raises_it_for_positive_semidefinite_graphs(seed, lam, t):
    assert rise("kernel", seed, lam, t, damped=False) <= 1e-12


@pytest.mark.parametrize("kind", ["knn", "directed"])
def test_the_full_step_can_raise_it_otherwise(kind):
    # What is lost without the theorem's condition: a sharp barrier makes neighbours swap.
    assert max(rise(kind, seed, 4.0, 0.05, damped=False) for seed in range(20)) > 1e-3


def test_steps_are_full_where_the_theorem_holds_and_bounded_elsewhere():
    full = step_size(2 * jnp.eye(4) + jnp.ones((4, 4)) / 4, laplacian_weight=9.0, temperature=0.1)
    ring = jnp.roll(jnp.eye(4), 1, 1) + jnp.roll(jnp.eye(4), -1, 1)  # lowest eigenvalue -2
    assert full == 1
    np.testing.assert_allclose(step_size(ring, laplacian_weight=5.0, temperature=1.0), 2 / 10)
    assert step_size(ring, laplacian_weight=0.0, temperature=1.0) == 1


def test_one_update_is_the_softmax_of_costs_and_pulls():
    rng = np.random.default_rng(0)
    w, unary = graph("directed", rng), rng.random((C, N))
    z = rng.dirichlet(np.ones(C), N).T
    fixed = np.arange(N) < 4
    found, count = bound_updates(
        *(jnp.asarray(a, jnp.float32) for a in (z, unary, w)),
        laplacian_weight=0.7, temperature=0.3, fixed=jnp.asarray(fixed), steps=1,
    )  # fmt: skip
    logits = np.array(
        [[(-unary[k, p] + 0.7 * (z[k] @ w[:, p])) / 0.3 for p in range(N)] for k in range(C)]
    )
    expected = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(found, np.where(fixed, z, expected), rtol=2e-6, atol=2e-7)
    assert count == 1


def test_updates_stop_when_assignments_stay():
    rng = np.random.default_rng(1)
    unary = jnp.asarray(rng.random((C, N)), jnp.float32)
    start = jnp.full((C, N), 1 / C)
    _, count = bound_updates(start, unary, jnp.zeros((N, N)), laplacian_weight=1.0, steps=9)
    assert count == 2  # the second finds nothing to change


def test_numbers_of_double_precision_do_not_widen_single_precision():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        arrays = [rng.dirichlet(np.ones(C), N).T, 3 * rng.random((C, N)), graph("kernel", rng)]
        given = [jnp.asarray(one, jnp.float32) for one in arrays]
        numbers = dict(laplacian_weight=0.7, temperature=0.4, step=0.6)
        expected, _ = bound_updates(*given, **numbers)
        double = {name: jnp.asarray(one, jnp.float64) for name, one in numbers.items()}
        found, _ = bound_updates(*given, **double)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
