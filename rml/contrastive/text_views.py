"""Two corrupted views of each text, a query and its key: spans and corruption in one."""

from functools import partial

import jax
from jaxtyping import Array, Key

from rml.contrastive.corruption import corrupt
from rml.contrastive.spans import Texts, pairs


def text_views(
    key: Key[Array, ""],
    texts: Texts,
    *,
    name: str,
    min_ratio: float,
    max_ratio: float,
    keep: float,
    corruption: str,
    rate: float,
    vocabulary: tuple[int, int, int],
) -> tuple[Texts, Texts]:
    """Makes a query and a key of each text, and corrupts both independently.

    Args:
      key: Random key of the draw.
      texts: n texts of up to t tokens.
      name: Kind of the pairs, one of `PAIRS`.
      min_ratio: Least share of a text's tokens that a span holds.
      max_ratio: Largest share.
      keep: Probability that the rest keeps the span, for inverse cloze.
      corruption: One of `CORRUPTIONS`.
      rate: Probability of a token to be changed.
      vocabulary: Number of the mask token, least number of a word, size of the vocabulary.

    Returns:
      Queries and keys.

    Raises:
      ValueError: If a name is unknown or an option is out of its range.

    Source: Izacard et al., arXiv:2112.09118, Section 3.2.
    """
    key_pairs, key_queries, key_keys = jax.random.split(key, 3)
    queries, keys = pairs(
        name, key_pairs, texts, min_ratio=min_ratio, max_ratio=max_ratio, keep=keep
    )
    disturb = partial(corrupt, corruption, rate=rate, vocabulary=vocabulary)
    return disturb(key_queries, queries), disturb(key_keys, keys)
