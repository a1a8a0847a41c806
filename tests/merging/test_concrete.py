"""Masks of task vectors against their definition."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.merging import (
    binary_concrete,
    draw_mask,
    expected_mask,
    learn_mask,
    mask_logits,
    mask_vectors,
)
from rml.ops import trees

RNG = np.random.default_rng(7)
BASE = {"w": jnp.asarray([1.0, -2.0, 0.5]), "blocks": jnp.asarray([[1.0, 0.3], [2.0, -0.4]])}
VECTORS = {
    "w": jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32),
    "blocks": jnp.asarray(RNG.normal(size=(2, 2, 2)), jnp.float32),
}
BATCHES, AHEAD = (jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32) for _ in range(2))
GOLDEN = np.load(Path(__file__).parent / "golden" / "concrete_subspace.npz")
"""Numbers in float64 of `ConcreteMask` in tanganke/subspace_fusion at 67f8450.

`golden/make_concrete_subspace.py` wrote them; "layer0" and "layer1" are tensors of their own there,
"grad" is the gradient by the logits of the sum of masked vectors times "slopes"."""


def objective(params, batch):
    return jnp.sum((params["w"] - batch) ** 2) + jnp.sum(params["blocks"] ** 4)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_more_than_half_has_the_logits_probability_at_every_temperature(temperature):
    logits = jnp.asarray([-1.0, 0.0, 2.0])
    draws = binary_concrete(
        jax.random.key(0), jnp.tile(logits, (20_000, 1)), temperature=temperature
    )
    shares = np.asarray(draws > 0.5).mean(0)
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-np.asarray(logits))), atol=0.015)
    assert abs(float(draws[:, 1].mean()) - 0.5) < 0.01
    # The slope at a draw m is m (1 - m) / T.
    slope = jax.grad(lambda x: binary_concrete(jax.random.key(0), x, temperature=temperature).sum())
    m = binary_concrete(jax.random.key(0), logits, temperature=temperature)
    np.testing.assert_allclose(slope(logits), m * (1 - m) / temperature, rtol=1e-4)


def test_masked_vectors_are_rescaled_block_by_block():
    mask = {
        "w": jnp.asarray([0.2, 0.9, 0.4]), "blocks": jnp.asarray([[0.5, 1.0], [0.1, 0.3]]),
    }  # fmt: skip
    found = mask_vectors(VECTORS, mask)
    np.testing.assert_allclose(
        found["w"], np.asarray(VECTORS["w"]) * [0.2, 0.9, 0.4] / 0.5, rtol=1e-5
    )
    np.testing.assert_allclose(
        found["blocks"], np.asarray(VECTORS["blocks"]) * [[0.5 / 0.75, 1 / 0.75], [0.5, 1.5]],
        rtol=1e-5,
    )  # fmt: skip
    constant = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), BASE)
    for name, leaf in mask_vectors(VECTORS, constant).items():
        np.testing.assert_allclose(leaf, VECTORS[name], rtol=1e-5)
    nothing = mask_vectors(VECTORS, jax.tree.map(jnp.zeros_like, BASE))
    assert not any(np.asarray(leaf).any() for leaf in nothing.values())
    with pytest.raises(UserError, match=r"leaf 'w' of vectors is \[2, 3\]"):
        mask_vectors(VECTORS, mask | {"w": jnp.ones(4)})


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(temperature):
    with pytest.raises(UserError, match=r"temperature is .*, expected a number above 0"):
        draw_mask(jax.random.key(0), mask_logits(BASE), temperature=temperature)


def test_leaves_draw_for_themselves():
    logits = {"a": jnp.zeros(50), "b": jnp.zeros(50)}
    drawn = draw_mask(jax.random.key(1), logits)
    assert (drawn["a"] != drawn["b"]).any()


def by_hand(logits, step, options):
    """σ(x), or σ((x + log u / (1 - u)) / T) with the noise of a step and leaf."""
    if not options.get("sampled"):
        return jax.tree.map(jax.nn.sigmoid, logits)
    own = jax.random.fold_in(jax.random.key(8), step)
    drawn = {}
    for i, name in enumerate(sorted(logits)):
        noise = jax.random.logistic(jax.random.fold_in(own, i), logits[name].shape)
        drawn[name] = 1 / (1 + jnp.exp(-(logits[name] + noise) / options["temperature"]))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bilevel", "options"),
    [
        (True, {}), (False, {}), (True, {"by_block": False}), (False, {"by_block": False}),
        (True, {"clip": True, "inner_rate": 1.0}), (True, {"inner_rate": 1.0}),
        (True, {"sampled": True, "temperature": 0.7}),
        (False, {"sampled": True, "temperature": 1.6}),
    ],
)  # fmt: skip
def test_a_mask_follows_adam_with_coefficients_one_step_ahead(bilevel, options):
    given = {"inner_batches": AHEAD} if bilevel else {}
    given |= {"inner_rate": 0.2, "sampled": False} | options
    found = jax.jit(
        lambda b: learn_mask(
            objective, BASE, VECTORS, b, key=jax.random.key(8), scale=0.4, learning_rate=0.1,
            **given,
        )
    )(BATCHES)  # fmt: skip
    adam, logits = optax.adam(0.1), mask_logits(BASE)
    state = adam.init(logits)

    @jax.jit
    def step(logits, state, i, batch, ahead):
        # With the noise of the step, or none, everything is a function of x, held by hand.
        def parts(x, coefficients, batch):
            masked = mask_vectors(VECTORS, by_hand(x, i, options))
            return objective(trees.combine(BASE, masked, coefficients), batch)

        own = trees.block_coefficients(BASE, 2, 0.4)
        if not options.get("by_block", True):
            own = jnp.full(2, 0.4)
        if bilevel:
            slopes = jax.grad(parts, 1)(logits, own, ahead)
            # Adam's first step is the sign times the rate.
            own = jax.tree.map(lambda w, g: w - given["inner_rate"] * jnp.sign(g), own, slopes)
        if options.get("clip"):
            own = jax.tree.map(lambda w: jnp.where(w > 0.4, 1.0, 0.0), own)
        value, slopes = jax.value_and_grad(parts)(logits, own, batch)
        updates, state = adam.update(slopes, state)
        return optax.apply_updates(logits, updates), state, value

    for i in range(3):
        logits, state, value = step(logits, state, i, BATCHES[i], AHEAD[i])
        np.testing.assert_allclose(found.losses[i], value, rtol=1e-3)
    for name in logits:
        np.testing.assert_allclose(found.logits[name], logits[name], rtol=1e-3, atol=1e-4)


def test_logits_learn_with_the_coefficients_held():
    """Slopes are as small as Adam's epsilon, where its first step is not their sign.

    By hand in NumPy. Where slopes are large the first step does not depend on their size, and
    coefficients that are not held would give the same logits.
    """
    size, base = 1e-8, np.asarray(BASE["w"], float)
    found = jax.jit(
        lambda b: learn_mask(
            lambda params, batch: size * jnp.sum((params["w"] - batch) ** 2), {"w": BASE["w"]},
            {"w": VECTORS["w"]}, b, key=jax.random.key(8), inner_batches=AHEAD, scale=0.4,
            learning_rate=0.1, inner_rate=0.2, sampled=False,
        )
    )(BATCHES)  # fmt: skip
    vectors = np.asarray(VECTORS["w"], float)
    x, first, second = np.zeros((3, 3))
    for i, (batch, ahead) in enumerate(zip(np.asarray(BATCHES), np.asarray(AHEAD), strict=True)):
        mask = 1 / (1 + np.exp(-x))
        masked = vectors * mask / mask.mean()
        slopes = 2 * size * masked @ (base + 0.4 * masked.sum(0) - ahead)
        held = 0.4 - 0.2 * slopes / (np.abs(slopes) + 1e-8)
        error = base + held @ masked - batch
        np.testing.assert_allclose(found.losses[i], size * (error**2).sum(), rtol=1e-4)
        by_share = 2 * size * error * (held @ vectors)
        by_mask = by_share / mask.mean() - by_share @ mask / (3 * mask.mean() ** 2)
        slopes = by_mask * mask * (1 - mask)
        first, second = 0.9 * first + 0.1 * slopes, 0.999 * second + 0.001 * slopes**2
        root = np.sqrt(second / (1 - 0.999 ** (i + 1)))
        x = x - 0.1 * first / (1 - 0.9 ** (i + 1)) / (root + 1e-8)
    np.testing.assert_allclose(found.logits["w"], x, rtol=1e-3)


def test_sampled_masks_change_with_the_step_and_are_finite():
    found = jax.jit(
        lambda key: (
            learn_mask(
                objective, BASE, VECTORS, jnp.zeros((4, 3)), key=key, learning_rate=0.0
            ).losses
        )
    )(jax.random.key(5))
    assert np.isfinite(found).all()
    assert len(np.unique(np.asarray(found))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_masks_and_masked_vectors_are_those_of_the_authors_code(temperature, monkeypatch):
    """`_draw_mask`, by torch's `RelaxedBernoulli` with the uniforms stored, and `apply_mask`."""

    def stored(key, axis=0):
        w, *layers = (
            jnp.asarray(GOLDEN[f"{key}_{name}_{temperature}"]) for name in ("w", "layer0", "layer1")
        )
        return {"blocks": jnp.stack(layers, axis), "w": w}

    with jax.enable_x64(True):
        uniforms, vectors, slopes = stored("uniforms"), stored("vectors", 1), stored("slopes", 1)

        def loss(logits):
            noise = iter([jnp.log(u / (1 - u)) for u in jax.tree.leaves(uniforms)])
            monkeypatch.setattr(jax.random, "logistic", lambda *shape: next(noise))
            mask = draw_mask(jax.random.key(0), logits, temperature=temperature)
            masked = mask_vectors(vectors, mask)
            return sum(jnp.sum(masked[k] * slopes[k]) for k in masked), (mask, masked)

        logits = stored("logits")
        grad, (mask, masked) = jax.grad(loss, has_aux=True)(logits)
        for found, wanted in (
            (mask, stored("mask")), (masked, stored("masked", 1)), (grad, stored("grad")),
            (expected_mask(logits), stored("expected")),
        ):  # fmt: skip
            for name in wanted:
                assert found[name].dtype == jnp.float64
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-10, atol=1e-12)
