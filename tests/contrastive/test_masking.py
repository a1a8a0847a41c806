"""BERT's masking: which tokens are chosen, what becomes of them, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rml.contrastive import Texts, mask_tokens

MASK, LOW, HIGH = 4, 5, 1000


@pytest.fixture(scope="module")
def masked():
    """6,000 texts of 40, 20, 3 and 0 tokens, and what masking makes of them."""
    lengths = jnp.tile(jnp.array([40, 20, 3, 0]), 1500)
    tokens = jnp.asarray(np.random.default_rng(0).integers(LOW, HIGH, (6000, 40)))
    texts = Texts(tokens, lengths)
    build = jax.jit(lambda key: mask_tokens(key, texts, rate=0.15, vocabulary=(MASK, LOW, HIGH)))
    return texts, jax.tree.map(np.asarray, build(jax.random.key(0)))


@pytest.mark.slow
def test_fifteen_in_a_hundred_tokens_are_chosen_anywhere_in_a_text(masked):
    found = masked[1]
    counts = found.chosen.sum(axis=1).reshape(-1, 4)
    assert found.places.shape == (6000, 6)
    assert (counts == [6, 3, 1, 0]).all()
    for at, length in ((0, 40), (1, 20), (2, 3)):
        places = found.places[at::4][found.chosen[at::4]]
        assert places.max() < length
        assert stats.chisquare(np.bincount(places, minlength=length)).pvalue > 1e-3
    assert all(len(set(row)) == 6 for row in found.places[:100].tolist())


def test_of_the_chosen_80_are_masked_10_replaced_and_10_kept(masked):
    texts, found = masked
    before = np.take_along_axis(np.asarray(texts.tokens), found.places, axis=1)
    after = np.take_along_axis(found.texts.tokens, found.places, axis=1)
    np.testing.assert_array_equal(found.targets, before)
    before, after = before[found.chosen], after[found.chosen]
    hidden, same = after == MASK, after == before
    replaced = after[~hidden & ~same]
    for share, expected in (
        (hidden.sum(), 0.8),
        (same.sum(), 0.1 + 0.1 / (HIGH - LOW)),
        (len(replaced), 0.1 - 0.1 / (HIGH - LOW)),
    ):
        assert stats.binomtest(int(share), len(after), expected).pvalue > 1e-3
    drawn = np.histogram(replaced, bins=5, range=(LOW, HIGH))[0]
    assert stats.chisquare(drawn).pvalue > 1e-3
    assert replaced.min() >= LOW


def test_tokens_that_are_not_chosen_stay(masked):
    texts, found = masked
    seen = np.array(found.texts.tokens)
    rows, places = np.nonzero(found.chosen)
    seen[rows, found.places[rows, places]] = found.targets[rows, places]
    np.testing.assert_array_equal(seen, texts.tokens)
    np.testing.assert_array_equal(found.texts.lengths, texts.lengths)


@pytest.mark.parametrize("vocabulary", [(4, 200, 5), (4, 5, 5), (4, -1, 9), (9, 5, 9), (-1, 5, 9)])
def test_tokens_beyond_the_vocabulary_are_refused(vocabulary):
    mask, low, high = vocabulary
    texts = Texts(jnp.ones((2, 3), int), jnp.array([3, 2]))
    said = (
        f"mask token {mask} and words from {low}, expected both from 0 to below its size of {high}"
    )
    with pytest.raises(ValueError, match=said):
        mask_tokens(jax.random.key(0), texts, rate=0.15, vocabulary=vocabulary)
