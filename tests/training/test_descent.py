"""A run in one program: its steps by hand, one input a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.training import check_batches, descend


def test_a_loop_of_steps():
    """Gradient descent on (p - x)², one x a step, by hand: p moves a fifth of the way."""
    inputs, p = np.array([1.0, -2.0, 4.0]), 0.5
    found = descend(
        lambda p, x: (p - x) ** 2, jnp.asarray(p), jnp.asarray(inputs), optimizer=optax.sgd(0.1)
    )
    losses = []
    for x in inputs:
        losses.append((p - x) ** 2)
        p -= 0.2 * (p - x)
    np.testing.assert_allclose(found.params, p, rtol=1e-6)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-6)


def test_decay_reads_the_parameters():
    decayed = optax.adamw(0.1, weight_decay=0.5)
    found = descend(lambda p, _: 0.0 * p, jnp.ones(()), jnp.arange(2), optimizer=decayed)
    np.testing.assert_allclose(found.params, (1 - 0.05) ** 2, rtol=1e-6)


def test_it_maps_over_starts_and_rates():
    def end(start, rate):
        return descend(
            lambda p, x: (p - x) ** 2, start, jnp.ones(3), optimizer=optax.sgd(rate)
        ).params

    starts, rates = jnp.array([0.0, 2.0]), jnp.array([0.1, 0.25])
    found = jax.vmap(end)(starts, rates)
    wanted = 1 + (np.asarray(starts) - 1) * (1 - 2 * np.asarray(rates)) ** 3
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_batches_have_a_step_and_an_example():
    keys = jax.random.split(jax.random.key(0), 2)
    check_batches("data", {"x": jnp.zeros((2, 1, 0)), "step": np.arange(2), "key": keys})
    jax.eval_shape(lambda x: check_batches("data", x), jnp.zeros((2, 1)))
    for batches, said in (
        ({}, r"\[\]"), (np.zeros((0, 4)), r"\[\[0, 4\]\]"), (keys[:0], r"\[\[0\]\]"),
        ([jnp.zeros(2), jnp.zeros((2, 0, 3))], r"\[\[2\], \[2, 0, 3\]\]"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"data hold arrays of {said}, expected at least 1 st"):
            check_batches("data", batches)
