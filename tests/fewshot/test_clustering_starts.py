"""Starts of K-means: their distributions, and that they use few clusters' worth of points well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from rml.fewshot.clustering import kmeans_parallel, kmeans_plus_plus, random_rows
from rml.fewshot.clustering.starts import _draw

LINE = np.array([0.0, 1.0, 3.0, 7.0, 7.5], np.float32)


def pairs(draw, number=8000):
    """How often each pair of the five points of the line is drawn, in order."""
    keys = jax.random.split(jax.random.key(0), number)
    found = np.asarray(jax.jit(jax.vmap(draw))(keys))[..., 0]
    rows = np.searchsorted(LINE, found)
    np.testing.assert_array_equal(LINE[rows], found)  # every prototype is a point
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(rows.T), 1)
    return counts


def agrees(counts, probability):
    seen, expected = counts.ravel(), (counts.sum() * probability).ravel()
    assert (seen[expected == 0] == 0).all()
    return chisquare(seen[expected > 0], expected[expected > 0]).pvalue > 1e-3


def by_square(weights):
    first = weights / weights.sum()
    squares = weights * (LINE[:, None] - LINE) ** 2
    return first[:, None] * squares / squares.sum(axis=1, keepdims=True)


def test_pairs_follow_the_squared_distances():
    counts = pairs(
        lambda key: kmeans_plus_plus(jnp.asarray(LINE[:, None]), num_clusters=2, key=key)
    )
    assert agrees(counts, by_square(np.ones(5)))
    uniform = (1 - np.eye(5)) / 20
    assert not agrees(counts, uniform)  # the test can tell


def test_weights_multiply_the_probability():
    weights = np.array([1.0, 0, 2, 1, 4])
    counts = pairs(
        lambda key: kmeans_plus_plus(
            jnp.asarray(LINE[:, None]), num_clusters=2, key=key, weights=jnp.asarray(weights)
        )
    )
    assert agrees(counts, by_square(weights))
    assert not agrees(counts, by_square(np.array([1.0, 0, 2, 1, 3])))


def test_greedy_keeps_the_better_of_two_candidates():
    counts = pairs(
        lambda key: kmeans_plus_plus(jnp.asarray(LINE[:, None]), num_clusters=2, key=key, trials=2)
    )
    once = by_square(np.ones(5)) * 5
    left = np.array(
        [[np.minimum((LINE - a) ** 2, (LINE - b) ** 2).sum() for b in LINE] for a in LINE]
    )
    better = left[:, :, None] < left[:, None, :]
    same = left[:, :, None] == left[:, None, :]
    # P(b is kept) = P(b, b) + 2 P(b, c) over worse c; equal ones are won by the first drawn.
    expected = np.einsum("ab,ac,abc->ab", once, once, 2.0 * better + 1.0 * same) / 5
    np.testing.assert_allclose(expected.sum(), 1)
    assert agrees(counts, expected)
    assert not agrees(counts, by_square(np.ones(5)))


@pytest.mark.slow
def test_draws_over_many_blocks_follow_their_mass():
    mass = np.zeros(5000, np.float32)
    rows = np.array([0, 1023, 1024, 3000, 4999])
    mass[rows] = [1, 2, 3, 4, 10]
    found = np.asarray(_draw(jax.random.key(0), jnp.asarray(mass), 8000))
    counts = np.bincount(found, minlength=5000)
    assert counts.sum() == counts[rows].sum()
    assert chisquare(counts[rows], 8000 * mass[rows] / 20).pvalue > 1e-3


def test_random_rows_are_distinct():
    x = jnp.arange(7.0)[:, None]
    found = random_rows(x, num_clusters=7, key=jax.random.key(0))
    assert sorted(found[:, 0].tolist()) == list(range(7))


@pytest.mark.slow
def test_one_prototype():
    x = jnp.arange(7.0)[:, None]
    for start in (kmeans_plus_plus, kmeans_parallel, random_rows):
        assert start(x, num_clusters=1, key=jax.random.key(0)).shape == (1, 1)


@pytest.mark.slow
def test_rounds_find_every_one_of_many_far_clusters():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 20)
    x = (1000 * rng.standard_normal((30, 3))[owner] + rng.standard_normal((600, 3))).astype("f")

    def covered(start):
        keys = jax.random.split(jax.random.key(1), 10)
        found = np.asarray(jax.jit(jax.vmap(start))(keys))
        assert (found[:, :, None] == x).all(axis=3).any(axis=2).all()  # every prototype is a point
        near = np.argmin(((found[:, :, None] - x) ** 2).sum(3), axis=2)
        return np.mean([len(set(owner[rows])) for rows in near])

    def parallel(key):
        return kmeans_parallel(jnp.asarray(x), num_clusters=30, key=key, block=128)

    def uniform(key):
        return random_rows(jnp.asarray(x), num_clusters=30, key=key)

    assert covered(parallel) > 28
    assert covered(uniform) < 23


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize("oversampling", [0.5, 3.0])
def test_candidates_weigh_the_points_nearest_to_them(oversampling, d, monkeypatch):
    from rml.fewshot.clustering import starts

    seen = {}

    def spy(candidates, *, num_clusters, key, weights):
        seen.update(candidates=candidates, weights=weights)
        return candidates[:num_clusters]

    monkeypatch.setattr(starts, "kmeans_plus_plus", spy)
    x = np.random.default_rng(0).standard_normal((200, d)).astype(np.float32)
    starts.kmeans_parallel.__wrapped__(
        jnp.asarray(x),
        num_clusters=8,
        key=jax.random.key(0),
        oversampling=oversampling,
        block=64,
    )
    candidates, weights = (np.asarray(seen[name]) for name in ("candidates", "weights"))
    assert weights.sum() == 200
    held = candidates[weights > 0]
    assert len(np.unique(held, axis=0)) == len(held)
    nearest = np.argmin(((x[:, None].astype(np.float64) - held) ** 2).sum(2), axis=1)
    np.testing.assert_array_equal(np.bincount(nearest, minlength=len(held)), weights[weights > 0])
    # Five rounds of l rows and the first, within six standard deviations.
    expected = 1 + 5 * oversampling * 8
    assert abs(len(held) - expected) < 6 * np.sqrt(expected)


@pytest.mark.parametrize(
    ("start", "options"),
    [
        (kmeans_plus_plus, dict(num_clusters=0)),
        (kmeans_plus_plus, dict(num_clusters=2, trials=0)),
        (kmeans_parallel, dict(num_clusters=0)),
        (kmeans_parallel, dict(num_clusters=2, rounds=0)),
        (kmeans_parallel, dict(num_clusters=2, oversampling=0.0)),
    ],
)
def test_numbers_out_of_their_range_are_named(start, options):
    option, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"^{option} is {value}, expected a number"):
        start(jnp.asarray(LINE[:, None]), key=jax.random.key(0), **options)
