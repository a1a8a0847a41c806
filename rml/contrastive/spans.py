"""Positive pairs made of unlabelled text: two crops of a document, or a span and the rest.

A document is a row of token numbers and its length, without the tokens that begin and end a text;
what stands behind the length is ignored. All shapes are known beforehand, so pairs are made on the
device, by the step that trains on them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from rml.errors import unknown

PAIRS = ("crops", "inverse_cloze", "same")


class Texts(NamedTuple):
    """Rows of token numbers.

    Attributes:
      tokens: Token numbers; what stands behind the length is unspecified.
      lengths: Number of tokens of each row.
    """

    tokens: Int[Array, "n t"]
    lengths: Int[Array, " n"]


def _check_range(name: str, low: float, high: float) -> None:
    if not 0 < low <= high <= 1:
        raise ValueError(f"{name} must satisfy 0 < min <= max <= 1, got {low} and {high}")


def check_rate(name: str, rate: float) -> None:
    """Raises `ValueError` unless a rate is in [0, 1]; `name` is its name in the message."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {rate}")


def _draw_span(
    key: Key[Array, ""], lengths: Int[Array, " n"], min_ratio: float, max_ratio: float
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Start and length of a span of each text, at least one token of one that has any."""
    key_length, key_start = jax.random.split(key)
    # In float32 always, as the width is rounded; see `_width`.
    ratio = jax.random.uniform(
        key_length, lengths.shape, jnp.float32, minval=min_ratio, maxval=max_ratio
    )  # fmt: skip
    size = jnp.clip(jnp.floor(ratio * lengths).astype(lengths.dtype), 1, lengths)
    start = jax.random.randint(key_start, lengths.shape, 0, lengths - size + 1, lengths.dtype)
    return start, size


def _gather(tokens: Int[Array, "n t"], index: Int[Array, "n s"]) -> Int[Array, "n s"]:
    return jnp.take_along_axis(tokens, jnp.clip(index, 0, tokens.shape[1] - 1), axis=1)


def _width(texts: Texts, max_ratio: float) -> int:
    # Rounded as the drawn lengths are: 0.29 of 100 tokens are 29 in float32, and not in float64.
    return max(1, int(np.float32(max_ratio) * np.float32(texts.tokens.shape[1])))


def crop(key: Key[Array, ""], texts: Texts, *, min_ratio: float, max_ratio: float) -> Texts:
    """Cuts one random span out of each text.

    Args:
      key: Random key of the draw.
      texts: n texts of up to t tokens.
      min_ratio: Least share of a text's tokens that a span holds.
      max_ratio: Largest share. Shares are uniform; a span's length is rounded down, to one at
        least, and its place is uniform.

    Returns:
      The spans, `max_ratio` t tokens wide.

    Raises:
      ValueError: If the shares are not ascending within (0, 1].

    Source: Izacard et al., arXiv:2112.09118, Section 3.2, independent cropping.
    """
    _check_range("ratios", min_ratio, max_ratio)
    start, size = _draw_span(key, texts.lengths, min_ratio, max_ratio)
    index = start[:, None] + jnp.arange(_width(texts, max_ratio))
    return Texts(_gather(texts.tokens, index), size)


def inverse_cloze(
    key: Key[Array, ""], texts: Texts, *, min_ratio: float, max_ratio: float, keep: float = 0.0
) -> tuple[Texts, Texts]:
    """Cuts a random span out of each text and returns it with what is left.

    Args:
      key: Random key of the draw.
      texts: n texts of up to t tokens.
      min_ratio: Least share of a text's tokens that the span holds.
      max_ratio: Largest share.
      keep: Probability that the rest keeps the span, so that words in common are learned too.

    Returns:
      The spans, `max_ratio` t tokens wide, and the rests, t tokens wide. A text of one token is its
      own rest.

    Raises:
      ValueError: If the shares are not ascending within (0, 1] or `keep` is not in [0, 1].

    Source: Lee et al., Latent Retrieval for Weakly Supervised Open Domain Question Answering,
    arXiv:1906.00300, Section 4 (which keeps the span in one of ten); a baseline of
    arXiv:2112.09118, Section 3.2.
    """
    _check_range("ratios", min_ratio, max_ratio)
    check_rate("keep", keep)
    key_span, key_keep = jax.random.split(key)
    start, size = _draw_span(key_span, texts.lengths, min_ratio, max_ratio)
    span = _gather(texts.tokens, start[:, None] + jnp.arange(_width(texts, max_ratio)))
    whole = jax.random.bernoulli(key_keep, keep, start.shape) | (size == texts.lengths)
    removed = jnp.where(whole, 0, size)
    place = jnp.arange(texts.tokens.shape[1])
    index = place + jnp.where(place >= start[:, None], removed[:, None], 0)
    return Texts(span, size), Texts(_gather(texts.tokens, index), texts.lengths - removed)


def pairs(
    name: str,
    key: Key[Array, ""],
    texts: Texts,
    *,
    min_ratio: float,
    max_ratio: float,
    keep: float = 0.0,
) -> tuple[Texts, Texts]:
    """Makes a query and a key of each text.

    Args:
      name: "crops" (two independent spans, which may overlap), "inverse_cloze" (a span and the
        rest) or "same" (the text twice, for corruptions alone to tell apart).
      key: Random key of the draw.
      texts: n texts of up to t tokens.
      min_ratio: Least share of a text's tokens that a span holds.
      max_ratio: Largest share.
      keep: Probability that the rest keeps the span, for inverse cloze.

    Returns:
      Queries and keys.

    Raises:
      ValueError: If the name is unknown or an option is out of its range.

    Source: arXiv:2112.09118, Section 3.2.
    """
    first, second = jax.random.split(key)
    match name:
        case "crops":
            spans = (
                crop(one, texts, min_ratio=min_ratio, max_ratio=max_ratio)
                for one in (first, second)
            )
            return tuple(spans)  # type: ignore[return-value]
        case "inverse_cloze":
            return inverse_cloze(first, texts, min_ratio=min_ratio, max_ratio=max_ratio, keep=keep)
        case "same":
            return texts, texts
    raise unknown("pairs", name, PAIRS)


def with_ends(
    texts: Texts, *, first: int, last: int, padding: int
) -> tuple[Int[Array, "n s"], Bool[Array, "n s"]]:
    """Puts the tokens that begin and end a text around each.

    Args:
      texts: n texts of up to t tokens.
      first: Number of the token before a text, such as [CLS].
      last: Number of the token behind it, such as [SEP].
      padding: Number of the token that fills a row.

    Returns:
      Tokens of t + 2 columns and a mask that is true where they are the text's, ends included: what
      an encoder takes.
    """
    n, t = texts.tokens.shape
    place = jnp.arange(t + 2)
    end = texts.lengths[:, None] + 1
    padded = jnp.concatenate(
        [
            jnp.full((n, 1), first, texts.tokens.dtype),
            texts.tokens,
            jnp.zeros((n, 1), texts.tokens.dtype),
        ],
        axis=1,
    )
    tokens = jnp.where(place < end, padded, jnp.where(place == end, last, padding))
    return tokens, place <= end
