"""Two views of a text: what spans and corruption give apart, together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.contrastive import Texts, corrupt, pairs
from rml.contrastive.text_views import text_views

SPANS = {"min_ratio": 0.2, "max_ratio": 0.6, "keep": 0.5}
CORRUPTION = {"rate": 0.4, "vocabulary": (4, 5, 500)}


def texts() -> Texts:
    lengths = jnp.array([20, 7, 13])
    return Texts(5 + jnp.arange(60).reshape(3, 20), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crops", "inverse_cloze", "same"])
@pytest.mark.parametrize("corruption", ["none", "delete", "mask"])
def test_views_are_pairs_corrupted_apart(name, corruption):
    key = jax.random.key(3)
    found = text_views(key, texts(), name=name, corruption=corruption, **SPANS, **CORRUPTION)
    key_pairs, *keys = jax.random.split(key, 3)
    for view, own, made in zip(found, keys, pairs(name, key_pairs, texts(), **SPANS), strict=True):
        expected = corrupt(corruption, own, made, **CORRUPTION)
        jax.tree.map(np.testing.assert_array_equal, view, expected)


def test_the_two_views_of_a_text_are_masked_in_different_places():
    first, second = text_views(
        jax.random.key(0), texts(), name="same", corruption="mask", **SPANS, **CORRUPTION
    )
    where = [np.asarray(view.tokens) == 4 for view in (first, second)]
    assert (where[0] != where[1]).any()
    assert where[0].any()


def test_unknown_names_are_errors():
    for wrong in ({"name": "crop"}, {"corruption": "masc"}):
        options = {"name": "crops", "corruption": "mask"} | wrong
        with pytest.raises(ValueError, match="did you mean"):
            text_views(jax.random.key(0), texts(), **options, **SPANS, **CORRUPTION)
