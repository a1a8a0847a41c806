"""Nats of toy models whose probabilities are known, and needles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation.long_text import (
    answer_scores,
    by_position,
    found_share,
    place_needle,
    sliding_nats,
    sliding_windows,
    token_nats,
)

TABLE = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]))
"""Logarithm of the probability of the next token, by this token."""


def markov(tokens):
    """Of a model that knows one token alone the logits are the hidden states."""
    return TABLE[tokens]


def counting(tokens):
    """Logits by which token 0 has the probability 1 / (2 + place in the window)."""
    p = jnp.broadcast_to(1 / (2.0 + jnp.arange(tokens.shape[1])), tokens.shape)
    return jnp.log(jnp.stack([p, 1 - p], axis=-1))


def same(x):
    return x


@pytest.mark.slow
def test_nats_of_known_probabilities():
    tokens = jnp.array([0, 1, 1, 2, 0])
    wanted = -np.log([0.25, 0.8, 0.1, 0.3])
    found = token_nats(markov(tokens), same, tokens, chunk=3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.slow
def test_in_chunks_it_equals_logits_that_exist_at_once():
    hidden, head = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(11, 4), (4, 7)])
    )
    tokens = jax.random.randint(jax.random.key(2), (11,), 0, 7)
    whole = jax.nn.log_softmax(hidden @ head)[jnp.arange(10), tokens[1:]]
    for chunk in (1, 4, 10, 64):
        found = jax.jit(partial(token_nats, head=lambda x: x @ head, chunk=chunk))(
            hidden, tokens=tokens
        )
        np.testing.assert_allclose(found, -whole, rtol=1e-5)


@pytest.mark.parametrize(("t", "window", "stride"), [(20, 8, 3), (20, 8, 7), (8, 8, 2), (9, 8, 4)])
def test_windows_count_every_token_but_the_first_once(t, window, stride):
    cut = sliding_windows(np.arange(t), window=window, stride=stride)
    assert sorted(cut.tokens[cut.counted].tolist()) == list(range(1, t))
    assert not cut.counted[1:, : window - stride].any()


def test_a_token_is_scored_where_it_is_counted_first():
    """A window of 4 that moves by 2: places 1 2 3, then 2 3 of each later window."""
    found = sliding_nats(counting, same, np.zeros(8, np.int32), window=4, stride=2)
    np.testing.assert_allclose(found, np.log([2, 3, 4, 3, 4, 3, 4]), rtol=1e-6)
    np.testing.assert_allclose(by_position(np.arange(1.0, 7.0), (1, 3, 7)), [1.5, 4.5])


def test_a_needle_lies_where_it_was_put():
    document, needle, question = np.arange(100, 200), np.array([1, 2, 3]), np.array([7, 8])
    for depth, at in ((0.0, 0), (0.5, 10), (1.0, 20)):
        made = place_needle(document, needle, question, length=25, depth=depth)
        assert (made.start, len(made.tokens)) == (at, 25)
        np.testing.assert_array_equal(made.tokens[at : at + 3], needle)
        np.testing.assert_array_equal(made.tokens[-2:], question)
        np.testing.assert_array_equal(np.setdiff1d(made.tokens, [1, 2, 3, 7, 8]), range(100, 120))
    made = place_needle(document, needle, question, length=25, depth=0.5, ends={103, 111, 118})
    assert made.start == 12  # behind the sentence that ends with 111


def test_the_right_answer_scores_above_the_others():
    prompt = jnp.array([2, 0, 1])
    found = answer_scores(markov, same, prompt, jnp.array([[0], [1], [2]]))
    np.testing.assert_allclose(found, np.log([0.1, 0.8, 0.1]), rtol=1e-5)
    longer = answer_scores(markov, same, prompt, jnp.array([[0, 0], [1, 2]]))
    np.testing.assert_allclose(longer, np.log([0.1 * 0.5, 0.8 * 0.1]), rtol=1e-5)
    scores = np.array([[0.0, 1.0], [3.0, 2.0], [1.0, 1.0]])
    assert found_share(scores, np.array([1, 1, 0])) == pytest.approx(1 / 3)


def test_texts_of_one_shape_are_read_by_one_program():
    traced = []

    @jax.jit
    def hidden(tokens):
        traced.append(tokens.shape)
        return markov(tokens)

    text, answers = np.arange(40) % 3, jnp.array([[0, 0], [1, 2]])
    for part in (text[:30], text[10:]):
        sliding_nats(hidden, same, part, window=6, stride=3)
        answer_scores(hidden, same, jnp.asarray(part), answers)
    assert len(traced) == len(set(traced))


def test_weights_that_functions_hold_are_those_of_the_call():
    rng = np.random.default_rng(0)
    inner, outer = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4, 3))
    text, answers, held = np.arange(13) ** 2 % 3, np.array([[0, 1], [1, 2], [2, 2]]), {}

    def hidden(tokens):
        return held["inner"][tokens]

    def head(x):
        assert len(x) <= 2  # a chunk, or the tokens of an answer
        return x @ held["outer"]

    for i, j in ((0, 0), (0, 1), (1, 1)):
        held.update(inner=jnp.asarray(inner[i]), outer=jnp.asarray(outer[j]))
        logits = inner[i] @ outer[j]
        p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found = sliding_nats(hidden, head, text, window=6, stride=2, chunk=2)
        np.testing.assert_allclose(found, -p[text[:-1], text[1:]], rtol=1e-5)
        scores = answer_scores(hidden, head, jnp.asarray(text), jnp.asarray(answers))
        wanted = p[text[-1], answers[:, 0]] + p[answers[:, 0], answers[:, 1]]
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(sliding_windows, np.arange(5), window=6, stride=2), "window=6.*5 tokens"),
        (partial(sliding_windows, np.arange(5), window=4, stride=4), "stride=4"),
        (partial(by_position, np.arange(3.0), (1, 6)), r"edges=\(1, 6\)"),
        (partial(place_needle, *[np.arange(5)] * 3, length=12, depth=2.0), r"depth=2\.0"),
        (partial(place_needle, *[np.arange(5)] * 3, length=30, depth=0.5), "document of 5"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
