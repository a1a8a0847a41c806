"""Skip-gram with negative samples: the loss, the draws, what training learns."""

import jax
import jax.numpy as jnp
import numpy as np

from rml.models.word2vec import (
    Options,
    Sizes,
    Vectors,
    context_nats,
    draw_noise,
    draw_pairs,
    kept_chance,
    noise_table,
    pair_losses,
    settings_nats,
)


def test_the_loss_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    v, u = rng.standard_normal((2, 7, 4))
    centers, contexts = np.array([1, 6, 1]), np.array([2, 0, 5])
    noise, weights = np.array([[0, 3], [4, 4], [5, 1]]), np.array([[1.0, 1], [1, 0], [0, 0]])
    wanted = [
        -np.log(1 / (1 + np.exp(-u[o] @ v[c])))
        - sum(w * np.log(1 / (1 + np.exp(u[k] @ v[c]))) for k, w in zip(ks, ws, strict=True))
        for c, o, ks, ws in zip(centers, contexts, noise, weights, strict=True)
    ]
    found = pair_losses(
        Vectors(jnp.asarray(v), jnp.asarray(u)), *map(jnp.asarray, (centers, contexts, noise)),
        jnp.asarray(weights, jnp.float32),
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_pairs_are_near_and_nearer_ones_are_likelier():
    tokens = jnp.arange(100)
    centers, contexts = jax.jit(draw_pairs, static_argnames=("window", "number"))(
        jax.random.key(0), tokens, window=3, number=20_000
    )
    offset = (np.asarray(contexts - centers) + 50) % 100 - 50
    share = np.array([(offset == d).mean() for d in range(-3, 4)])
    # A reach of 1, 2 or 3, and a neighbour within it: 1/3 (1 + 1/2 + 1/3), ... on both sides.
    side = np.array([1 / 9, 1 / 6 + 1 / 9, 1 / 3 + 1 / 6 + 1 / 9]) / 2
    np.testing.assert_allclose(share, [*side, 0, *side[::-1]], atol=0.01)


def test_noise_and_subsampling_follow_the_counts():
    counts = jnp.array([1.0, 0.0, 16.0, 81.0])
    drawn = np.asarray(draw_noise(jax.random.key(1), noise_table(counts, 0.75), (30_000,)))
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, np.array([1, 0, 8, 27]) / 36, atol=0.01)
    np.testing.assert_allclose(
        kept_chance(counts, 0.04)[2:], [np.sqrt(0.04 * 98 / 16), np.sqrt(0.04 * 98 / 81)], rtol=1e-5
    )
    assert kept_chance(counts, 0.04)[0] == 1


def test_scores_do_not_depend_on_an_offset_of_all_logits():
    rng = np.random.default_rng(2)
    v, u = (jnp.asarray(x) for x in rng.standard_normal((2, 6, 3)))
    counts = jnp.array([3.0, 1, 4, 1, 5, 9])
    centers, contexts = jnp.array([0, 5]), jnp.array([2, 1])
    found = context_nats(Vectors(v, u), counts, centers, contexts, power=0.5)
    logits = np.asarray(v[centers] @ u.T, np.float64) + 0.5 * np.log(np.asarray(counts))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, -np.log(p[[0, 1], [2, 1]]), rtol=1e-5)
    # Vectors of zeros know how often words stand in a text, with a power of 1.
    zeros = Vectors(v * 0, u * 0)
    alone = context_nats(zeros, counts, centers, contexts, power=1.0)
    np.testing.assert_allclose(alone, -np.log(np.array([4, 1]) / 23), rtol=1e-5)


def test_settings_train_together_and_learn_what_stands_beside_what():
    """Words 2i and 2i + 1 always stand together."""
    pairs = np.random.default_rng(3).integers(0, 5, 600)
    tokens = jnp.asarray(np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel())
    counts = jnp.bincount(tokens, length=10).astype(jnp.float32)
    held = (tokens[::2], tokens[1::2])
    options = Options(
        window=jnp.array([1, 1, 4]), negatives=jnp.array([4, 4, 4]), width=jnp.array([8, 8, 8]),
        rate=jnp.array([0.0, 0.05, 0.05]), subsample=jnp.full(3, 1.0), power=jnp.full(3, 0.75),
    )  # fmt: skip
    sizes = Sizes(negatives=6, width=8, batch=64, steps=150)
    found = settings_nats(jax.random.key(0), (tokens, counts), held, options, sizes)
    # Untrained vectors know counts alone. Of a window of 1 half of the pairs are held-out ones.
    assert found[1] < found[2] < found[0] - 0.3
    assert found[1] < 1.2 < 2.0 < found[0]
