"""Episodes: what a task consists of, how it is drawn, and the errors of impossible ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rml.errors import UserError
from rml.fewshot.episodes import (
    class_index,
    dirichlet_counts,
    draw_without_replacement,
    sample_episodes,
)

SIZES = [9, 3, 12, 7, 30, 7, 8]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [None, 0.3, 2.0])
@pytest.mark.parametrize(("ways", "shots", "queries"), [(3, 1, 5), (6, 2, 5), (2, 4, 3)])
def test_tasks_are_what_they_say(concentration, ways, shots, queries):
    tasks = sample_episodes(
        jax.random.key(1), jnp.asarray(LABELS), episodes=50, ways=ways, shots=shots,
        queries=queries, concentration=concentration,
    )  # fmt: skip
    support, support_labels, query, query_labels = (np.asarray(x) for x in tasks)
    assert support.shape == (50, ways * shots)
    assert query.shape == (50, ways * queries)
    used = set()
    for i in range(50):
        rows = np.concatenate([support[i], query[i]])
        assert len(set(rows)) == len(rows)  # no repeats, and no query in the support
        names = LABELS[support[i]].reshape(ways, shots)
        assert np.all(names == names[:, :1])
        assert len(set(names[:, 0])) == ways
        np.testing.assert_array_equal(support_labels[i], np.repeat(np.arange(ways), shots))
        np.testing.assert_array_equal(names[query_labels[i], 0], LABELS[query[i]])
        used |= set(names[:, 0])
        if concentration is None:
            np.testing.assert_array_equal(np.bincount(query_labels[i]), queries)
    assert 1 not in used  # its 3 examples never suffice
    assert used == {k for k, size in enumerate(SIZES) if size >= shots + queries}
    if concentration is not None:
        counts = np.stack([np.bincount(x, minlength=ways) for x in query_labels])
        assert np.any(counts != queries)


@pytest.mark.slow
def test_tasks_are_a_function_of_key_and_number():
    draw = jax.jit(partial(sample_episodes, episodes=20, ways=3, shots=1, queries=4))
    index = class_index(jnp.asarray(LABELS))
    first = draw(jax.random.key(0), index)
    again = sample_episodes(
        jax.random.key(0), jnp.asarray(LABELS), episodes=20, ways=3, shots=1, queries=4
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = draw(jax.random.key(1), index)
    assert np.any(first.support != other.support)
    assert len({tuple(row) for row in np.asarray(first.query)}) == 20


@jax.jit  # a loop outside of a program would be compiled at every call
def twelve_draws(seed, size):
    return draw_without_replacement(jax.random.uniform(jax.random.key(seed), (12,)), size)


@pytest.mark.slow
@settings(max_examples=30, derandomize=True)
@given(seed=st.integers(0, 1000), size=st.integers(0, 40))
def test_draws_are_distinct(seed, size):
    drawn = np.asarray(twelve_draws(seed, size))[: min(size, 12)]
    assert len(set(drawn)) == len(drawn)
    assert np.all((drawn >= 0) & (drawn < size))


def test_draws_are_even_at_every_place_and_for_pairs():
    uniforms = jax.random.uniform(jax.random.key(0), (12_000, 3))
    drawn = np.asarray(
        jax.jit(jax.vmap(draw_without_replacement, (0, None)))(uniforms, jnp.asarray(5))
    )
    for place in range(3):
        assert chisquare(np.bincount(drawn[:, place], minlength=5)).pvalue > 1e-3
    pairs = np.bincount(drawn[:, 0] * 5 + drawn[:, 2], minlength=25).reshape(5, 5)
    assert np.all(np.diagonal(pairs) == 0)
    assert chisquare(pairs[~np.eye(5, dtype=bool)]).pvalue > 1e-3


@pytest.mark.slow
def test_dirichlet_counts_follow_the_shares_and_the_room():
    keys = jax.random.split(jax.random.key(0), 4000)

    @jax.jit
    def drawn(room, concentration):
        return jax.vmap(lambda k: dirichlet_counts(k, room, total=60, concentration=concentration))(
            keys
        )

    def counts(room, concentration):
        return np.asarray(drawn(jnp.asarray(room), concentration))

    free = counts([60] * 4, 2.0)
    assert np.all(free.sum(1) == 60)
    # Mean and variance of a symmetric Dirichlet share: 1/4, (1/4)(3/4) / (4·2 + 1).
    np.testing.assert_allclose(free.mean(0), 15, atol=0.5)
    np.testing.assert_allclose((free / 60).var(0), 3 / 16 / 9, rtol=0.1)
    tight = counts([5, 60, 20, 20], 0.5)
    assert np.all(tight.sum(1) == 60)
    assert np.all(tight <= [5, 60, 20, 20])
    assert counts([60] * 4, 0.2).std() > free.std() > counts([60] * 4, 50.0).std()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(ways=8, shots=1, queries=1), "8 ways need as many classes, got 7"),
        (
            dict(ways=4, shots=2, queries=8),
            r"4 ways need 4 classes of at least 2 \+ 8 .* got 2; the class sizes are 30, 12, 9, 8,",
        ),
        (dict(ways=2, shots=0, queries=1), "must be at least 1, got 2, 0 and 1"),
        (dict(ways=2, shots=1, queries=1, num_classes=5), "between 0 and 4, got .* to 6"),
        (dict(ways=2, shots=1, queries=1, episodes=0), "episodes must be at least 1, got 0"),
        *(
            (dict(ways=2, shots=1, queries=1, concentration=c), f"concentration must be .* got {c}")
            for c in (0.0, np.nan)
        ),
    ],
)
def test_impossible_tasks_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        sample_episodes(jax.random.key(0), jnp.asarray(LABELS), **{"episodes": 2, **sizes})


def test_no_labels_are_named():
    with pytest.raises(UserError, match="must not be empty"):
        class_index(jnp.zeros(0, int))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones(4), r"labels are float64 of shape \(4,\), expected integers, one a row"),
        (np.ones((2, 2), int), r"labels are int64 of shape \(2, 2\), expected integers"),
    ],
)
def test_labels_are_integers_one_a_row(unchecked, labels, message):
    with pytest.raises(UserError, match=message):
        class_index(labels)


def test_classes_without_rows_are_indexed():
    index = class_index(jnp.asarray([3, 1, 3]), num_classes=5)
    np.testing.assert_array_equal(index.counts, [0, 1, 0, 2, 0])
    np.testing.assert_array_equal(index.rows[3], [0, 2])
    assert index.rows[1, 0] == 1
