"""Coefficients learned by entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.merging import learn_coefficients, prediction_entropy

RNG = np.random.default_rng(4)


def test_entropy_in_nats_and_its_gradient():
    logits = RNG.normal(size=(3, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = -(p * np.log(p)).sum(1)
    given = jnp.asarray(logits, jnp.float32)
    values, gradient = jax.jit(jax.value_and_grad(lambda x: prediction_entropy(x).sum()))(given)
    np.testing.assert_allclose(values, wanted.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, -p * (np.log(p) + wanted[:, None]), atol=1e-5)
    edges = jnp.asarray([[0.0, 0.0, -jnp.inf], [90.0, 0.0, -jnp.inf]])
    found, slopes = jax.jit(jax.vmap(jax.value_and_grad(prediction_entropy)))(edges)
    np.testing.assert_allclose(found, [np.log(2), 0], atol=1e-6)
    assert np.isfinite(slopes).all()


def test_entropy_of_logits_that_are_no_numbers_is_none():
    """As 0 it would be the best that can be learned."""
    nan, inf = jnp.nan, jnp.inf
    logits = jnp.asarray([[nan, nan], [nan, 1.0], [nan, -inf], [inf, -inf], [1.0, 2.0]])
    found = jax.jit(prediction_entropy)(logits)
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, True, False])


def test_entropy_of_half_precision_is_computed_in_float32():
    logits = jnp.asarray(RNG.normal(size=(3, 40)), jnp.bfloat16)
    entropy = jax.jit(prediction_entropy)
    found = entropy(logits)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, entropy(logits.astype(jnp.float32)))


@pytest.mark.slow
def test_coefficients_follow_adam_from_their_start():
    base = {"w": jnp.asarray([1.0, -2.0]), "blocks": jnp.asarray([[1.0], [2.0]])}
    vectors = {"w": jnp.asarray([[1.0, 0.5], [0.2, -1.0]]), "blocks": jnp.ones((2, 2, 1))}
    batches = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)

    def objective(params, batch):
        return jnp.sum((params["w"] - batch) ** 2) + jnp.sum(params["blocks"] ** 3)

    found = jax.jit(
        lambda v: learn_coefficients(objective, base, v, batches, start=0.4, learning_rate=0.1)
    )(vectors)
    assert {k: v.shape for k, v in found.params.items()} == {"w": (2,), "blocks": (2, 2)}
    adam = optax.adam(0.1)
    own = np.full(2, 0.4)
    state = adam.init(jnp.asarray(own))
    for batch in np.asarray(batches, np.float64):
        moved = np.asarray(base["w"]) + own @ np.asarray(vectors["w"])
        slope = np.asarray(vectors["w"]) @ (2 * (moved - batch))
        update, state = adam.update(jnp.asarray(slope, jnp.float32), state)
        own = own + np.asarray(update)
    np.testing.assert_allclose(found.params["w"], own, rtol=1e-4)
    # Kept in [0, 1] after every step; a step that leads beyond ends at the end.
    kept = jax.jit(
        lambda v: learn_coefficients(
            objective, base, v, batches, start=0.4, learning_rate=0.5, clip=True, by_block=False
        )
    )(vectors)
    adam, own = optax.adam(0.5), jnp.full(2, 0.4)
    state, ends = adam.init(own), 0

    def loss(own, batch):
        return objective(
            {"w": base["w"] + own @ vectors["w"], "blocks": base["blocks"] + own.sum()}, batch
        )

    for batch in batches:
        update, state = adam.update(jax.grad(loss)(own, batch), state)
        ends += int(((own + update < 0) | (own + update > 1)).sum())
        own = jnp.clip(own + update, 0, 1)
    assert ends >= 2
    np.testing.assert_allclose(kept.params, own, rtol=1e-4, atol=1e-6)
    first = ((np.array([1.0, -2.0]) + 0.4 * np.array([1.2, -0.5]) - batches[0]) ** 2).sum()
    np.testing.assert_allclose(found.losses[0], first + 1.8**3 + 2.8**3, rtol=1e-5)
    shared = jax.eval_shape(
        lambda v: learn_coefficients(objective, base, v, batches, by_block=False), vectors
    )
    assert shared.params.shape == (2,)
