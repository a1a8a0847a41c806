"""Skip-gram with negative samples: the loss, the draws, what training learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
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
    train_word2vec,
)


@pytest.mark.slow
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
    # Of each center's neighbours within a reach of 1, 2 or 3 there are 3, 2 and 1 on each side.
    side = np.array([1, 2, 3]) / 12
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


@pytest.mark.slow
def test_scores_do_not_depend_on_an_offset_of_all_logits():
    rng = np.random.default_rng(2)
    v, u = (jnp.asarray(x) for x in rng.standard_normal((2, 6, 3)))
    counts = jnp.array([3.0, 1, 4, 1, 5, 9])
    centers, contexts = jnp.array([0, 5]), jnp.array([2, 1])
    laws = {"power": 0.5, "subsample": 0.1}
    found = context_nats(Vectors(v, u), counts, centers, contexts, **laws)
    own = np.asarray(counts, np.float64)
    kept = np.minimum(1, np.sqrt(0.1 * own.sum() / own))
    assert ((kept == 1).sum(), len(set(kept))) == (2, 5)
    raised = np.exp(np.asarray(v[centers] @ u.T, np.float64)) * own**0.5 / kept
    p = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, -np.log(p[[0, 1], [2, 1]]), rtol=1e-5)
    # Vectors of zeros know how often words stand in a text, with a power of 1 and all words kept.
    zeros = Vectors(v * 0, u * 0)
    alone = context_nats(zeros, counts, centers, contexts, power=1.0, subsample=1.0)
    np.testing.assert_allclose(alone, -np.log(np.array([4, 1]) / 23), rtol=1e-5)


@pytest.mark.slow
def test_training_ends_at_the_products_of_its_own_draws():
    """Products are log q(o | c) / (k p_noise(o)), with q of the pairs that are kept."""
    tokens = np.random.default_rng(4).choice(3, 300, p=[0.6, 0.3, 0.1])
    tokens[1::2] = np.where(tokens[::2] == 1, 0, tokens[1::2])  # what is beside 1 is often 0
    counts = np.bincount(tokens).astype(np.float64)
    options = Options(1, negatives=2, width=4, rate=0.05, subsample=0.06, power=0.3)
    sizes = Sizes(negatives=5, width=6, batch=1024, steps=300)
    train = jax.jit(train_word2vec, static_argnames="sizes")
    found = train(
        jax.random.key(0), jnp.asarray(tokens), jnp.asarray(counts, jnp.float32), options,
        sizes=sizes,
    )  # fmt: skip
    for own in found:
        assert not own[:, 4:].any()
        assert own[:, :4].all()
    both = np.zeros((3, 3))
    np.add.at(both, (tokens, np.roll(tokens, 1)), 1)
    law = (both + both.T) * np.minimum(1, np.sqrt(0.06 * counts.sum() / counts))
    law /= law.sum(axis=1, keepdims=True)
    noise = counts**0.3 / (counts**0.3).sum()
    np.testing.assert_allclose(
        found.centers @ found.contexts.T, np.log(law / (2 * noise)), atol=0.15
    )


@pytest.mark.slow
def test_settings_train_together_and_learn_what_stands_beside_what():
    """Words 2i and 2i + 1 always stand together, the first of them most often."""
    pairs = np.random.default_rng(3).choice(5, 600, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    tokens = jnp.asarray(np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel())
    counts = jnp.bincount(tokens, length=10).astype(jnp.float32)
    held = (tokens[::2], tokens[1::2])
    options = Options(
        window=jnp.array([1, 1, 4]), negatives=jnp.array([4, 4, 2]), width=jnp.array([8, 8, 7]),
        rate=jnp.array([0.0, 0.05, 0.05]), subsample=jnp.array([0.05, 0.05, 0.1]),
        power=jnp.array([0.75, 0.75, 0.5]),
    )  # fmt: skip
    sizes = Sizes(negatives=6, width=10, batch=64, steps=150)
    found = settings_nats(jax.random.key(0), (tokens, counts), held, options, sizes)
    # Untrained vectors know the counts of noise and which words are kept, and nothing else.
    own = np.asarray(counts, np.float64)
    law = own**0.75 / np.minimum(1, np.sqrt(0.05 * own.sum() / own))
    assert found[0] == pytest.approx(-np.log(law / law.sum())[held[1]].mean(), rel=1e-5)
    # Of a window of 1 half of the pairs are held-out ones.
    assert found[1] < found[2] < found[0] - 0.3
    assert found[1] < 1.2


@pytest.mark.parametrize("name", ["negatives", "width"])
def test_options_beyond_the_sizes_are_named(name):
    tokens, counts = jnp.array([0, 1, 2]), jnp.ones(3)
    sizes = Sizes(negatives=4, width=4, batch=2, steps=1)
    wrong = Options(negatives=4, width=4)._replace(**{name: 5})
    with pytest.raises(UserError, match=f"{name} is 5, expected at most 4"):
        train_word2vec(jax.random.key(0), tokens, counts, wrong, sizes=sizes)
    several = Options(*(jnp.array([x, x]) for x in wrong))
    with pytest.raises(UserError, match=f"{name} is 5, expected at most 4"):
        settings_nats(jax.random.key(0), (tokens, counts), (tokens, tokens), several, sizes)


@pytest.mark.slow
def test_vectors_wider_than_their_room_start_as_those_that_fill_it():
    sizes = Sizes(negatives=2, width=4, batch=2, steps=1)
    given = jax.random.key(0), jnp.array([0, 1, 2]), jnp.ones(3)
    train = jax.jit(train_word2vec, static_argnames="sizes")
    first, second = (train(*given, Options(negatives=2, width=w), sizes=sizes) for w in (4, 9))
    np.testing.assert_array_equal(first.centers, second.centers)
