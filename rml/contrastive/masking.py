"""Tokens hidden from a text encoder, for it to predict: BERT's masking, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from rml.contrastive.spans import Texts, check_rate

MASKED, REPLACED = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and a token drawn at random."""


class Masked(NamedTuple):
    """Texts of which some tokens are to be predicted.

    Attributes:
      texts: The texts as the encoder sees them.
      places: Places of the tokens to predict, all of them different.
      targets: The tokens that stood there.
      chosen: Mask of the places that count; the others fill up texts that are shorter.
    """

    texts: Texts
    places: Int[Array, "n p"]
    targets: Int[Array, "n p"]
    chosen: Bool[Array, "n p"]


def mask_tokens(
    key: Key[Array, ""], texts: Texts, *, rate: float, vocabulary: tuple[int, int, int]
) -> Masked:
    """Chooses tokens to predict and hides most of them.

    Of a text of l tokens round(rate l) are chosen, one at least, all equally likely. A chosen token
    becomes the mask token with probability 0.8, a word drawn uniformly with 0.1, and else stays.

    Args:
      key: Random key of the draws.
      texts: n texts of up to t tokens.
      rate: Share of a text's tokens that are chosen; BERT's is 0.15.
      vocabulary: Number of the mask token, least number of a word, size of the vocabulary.

    Returns:
      The texts with p = round(rate t) places to predict, one at least.

    Raises:
      ValueError: If `rate` is not in [0, 1], or the vocabulary has no such mask token or word.

    Source: Devlin et al., BERT, arXiv:1810.04805, Section 3.1 and Appendix A.1; the number of a
    text's chosen tokens as in the authors' code, where the tokens at its ends count as well.
    """
    check_rate("rate", rate)
    mask, low, high = vocabulary
    if not (0 <= mask < high and 0 <= low < high):
        raise ValueError(
            f"vocabulary has mask token {mask} and words from {low}, expected both from 0 to below "
            f"its size of {high}"
        )
    key_where, key_kind, key_word = jax.random.split(key, 3)
    rows, width = texts.tokens.shape
    most = max(1, round(rate * width))
    inside = jnp.arange(width) < texts.lengths[:, None]
    draws = jnp.where(inside, jax.random.uniform(key_where, (rows, width)), 2.0)
    places = jnp.argsort(draws, axis=1)[:, :most]
    count = jnp.clip(jnp.round(rate * texts.lengths).astype(int), 1, texts.lengths)
    chosen = jnp.arange(most) < count[:, None]
    targets = jnp.take_along_axis(texts.tokens, places, axis=1)
    kind = jax.random.uniform(key_kind, places.shape)
    words = jax.random.randint(key_word, places.shape, low, high, texts.tokens.dtype)
    hidden = jnp.where(kind < MASKED, mask, jnp.where(kind < MASKED + REPLACED, words, targets))
    seen = texts.tokens.at[jnp.arange(rows)[:, None], places].set(
        jnp.where(chosen, hidden, targets), unique_indices=True
    )
    return Masked(texts._replace(tokens=seen), places, targets, chosen)
