"""Cosines of texts of similar length, beside loops over all pairs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import similarity_by_length

RNG = np.random.default_rng(1)
LENGTHS = np.array([3, 3, 4, 9, 8, 20, 7, 100])
EDGES = (3, 5, 10, 30, 50)


@pytest.mark.slow
def test_similarity_and_spread_are_those_of_all_pairs():
    x = RNG.normal(size=(8, 5)) + 1
    found = similarity_by_length(jnp.asarray(x), jnp.asarray(LENGTHS), jnp.asarray(EDGES))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    bins = [np.flatnonzero((a <= LENGTHS) & (b > LENGTHS)) for a, b in itertools.pairwise(EDGES)]
    assert [len(own) for own in bins] == [3, 3, 1, 0]
    np.testing.assert_array_equal(found.number, [3, 3, 1, 0])
    for own, cosine in zip(bins[:2], found.similarity, strict=False):
        pairs = [x[i] @ x[j] for i, j in itertools.combinations(own, 2)]
        np.testing.assert_allclose(cosine, np.mean(pairs), rtol=1e-5)
    assert np.isnan(found.similarity[2:]).all()
    center = x[LENGTHS < 50].mean(0)
    for own, spread in zip(bins[:3], found.spread, strict=False):
        far = np.linalg.norm(x[own] - center, axis=1).mean()
        np.testing.assert_allclose(spread, far, rtol=1e-5)
    assert np.isnan(found.spread[3])


@pytest.mark.parametrize(
    ("texts", "edges", "message"),
    [
        (7, EDGES, r"lengths \(7,\) do not fit embeddings \(8, 5\)"),
        (8, (3, 10, 5), r"edges=\[ 3 10  5\], expected at least two, ascending"),
        (8, (3, 3, 5), "expected at least two, ascending"),
        (8, (3,), "expected at least two, ascending"),
    ],
)
def test_wrong_lengths_and_edges_are_named(texts, edges, message):
    with pytest.raises(ValueError, match=message):
        similarity_by_length(jnp.ones((8, 5)), jnp.asarray(LENGTHS[:texts]), jnp.asarray(edges))
