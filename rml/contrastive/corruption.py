"""Corruptions of texts: tokens deleted, replaced, masked or moved, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from rml.contrastive.spans import Texts, check_rate
from rml.errors import unknown

CORRUPTIONS = ("none", "delete", "replace", "mask", "shuffle")


def delete(key: Key[Array, ""], texts: Texts, *, rate: float) -> Texts:
    """Deletes each token with probability `rate`; of a text at least one stays.

    Args:
      key: Random key of the draw.
      texts: n texts.
      rate: Probability of a token to be deleted.

    Returns:
      The texts, as wide as before.

    Raises:
      ValueError: If `rate` is not in [0, 1].

    Source: arXiv:2112.09118, Section 3.2, after Wei and Zou, arXiv:1901.11196.
    """
    check_rate("rate", rate)
    inside = jnp.arange(texts.tokens.shape[1]) < texts.lengths[:, None]
    draws = jax.random.uniform(key, texts.tokens.shape)
    # The token with the largest draw stays in any case.
    kept = inside & ((draws >= rate) | (draws == jnp.max(jnp.where(inside, draws, -1), 1)[:, None]))
    order = jnp.argsort(~kept, axis=1, stable=True)
    return Texts(
        jnp.take_along_axis(texts.tokens, order, axis=1),
        jnp.sum(kept, axis=1, dtype=texts.lengths.dtype),
    )


def replace(key: Key[Array, ""], texts: Texts, *, rate: float, low: int, high: int) -> Texts:
    """Replaces each token with probability `rate` by one drawn from low, ..., high - 1.

    Args:
      key: Random key of the draw.
      texts: n texts.
      rate: Probability of a token to be replaced.
      low: Least token number drawn, above those of special tokens.
      high: Size of the vocabulary.

    Returns:
      The texts.

    Raises:
      ValueError: If `rate` is not in [0, 1] or there is no token to draw.

    Source: arXiv:2112.09118, Section 3.2.
    """
    check_rate("rate", rate)
    if not 0 <= low < high:
        raise ValueError(f"tokens must be drawn from 0 <= low < high, got {low} and {high}")
    key_where, key_what = jax.random.split(key)
    shape, dtype = texts.tokens.shape, texts.tokens.dtype
    drawn = jax.random.randint(key_what, shape, low, high, dtype)
    where = jax.random.bernoulli(key_where, rate, shape)
    return texts._replace(tokens=jnp.where(where, drawn, texts.tokens))


def mask(key: Key[Array, ""], texts: Texts, *, rate: float, token: int) -> Texts:
    """Replaces each token with probability `rate` by the mask token.

    Args:
      key: Random key of the draw.
      texts: n texts.
      rate: Probability of a token to be masked.
      token: Number of the mask token.

    Returns:
      The texts.

    Raises:
      ValueError: If `rate` is not in [0, 1].

    Source: arXiv:2112.09118, Section 3.2.
    """
    check_rate("rate", rate)
    where = jax.random.bernoulli(key, rate, texts.tokens.shape)
    return texts._replace(tokens=jnp.where(where, token, texts.tokens))


def shuffle(key: Key[Array, ""], texts: Texts, *, rate: float) -> Texts:
    """Permutes, within each text, the tokens that are chosen with probability `rate`.

    Args:
      key: Random key of the draw.
      texts: n texts.
      rate: Probability of a token to be chosen.

    Returns:
      The texts.

    Raises:
      ValueError: If `rate` is not in [0, 1].

    Source: public code of arXiv:2112.09118.
    """
    check_rate("rate", rate)
    key_where, key_order = jax.random.split(key)
    shape = texts.tokens.shape
    inside = jnp.arange(shape[1]) < texts.lengths[:, None]
    chosen = jax.random.bernoulli(key_where, rate, shape) & inside
    # Places of the chosen tokens in their order, and the same places in a random order.
    places = jnp.argsort(~chosen, axis=1, stable=True)
    drawn = jnp.where(chosen, jax.random.uniform(key_order, shape), 2.0)
    mixed = jnp.argsort(drawn, axis=1, stable=True)
    rows = jnp.arange(shape[0])[:, None]
    count = jnp.sum(chosen, axis=1)[:, None]
    source = jnp.where(jnp.arange(shape[1]) < count, mixed, places)
    tokens = texts.tokens.at[rows, places].set(texts.tokens[rows, source], unique_indices=True)
    return texts._replace(tokens=tokens)


def corrupt(
    name: str, key: Key[Array, ""], texts: Texts, *, rate: float, vocabulary: tuple[int, int, int]
) -> Texts:
    """Applies the corruption of a name.

    Args:
      name: One of `CORRUPTIONS`.
      key: Random key of the draw.
      texts: n texts.
      rate: Probability of a token to be changed.
      vocabulary: Number of the mask token, least number of a word, size of the vocabulary.

    Returns:
      The texts.

    Raises:
      ValueError: If the name is unknown or `rate` is not in [0, 1].
    """
    token, low, high = vocabulary
    match name:
        case "none":
            return texts
        case "delete":
            return delete(key, texts, rate=rate)
        case "replace":
            return replace(key, texts, rate=rate, low=low, high=high)
        case "mask":
            return mask(key, texts, rate=rate, token=token)
        case "shuffle":
            return shuffle(key, texts, rate=rate)
    raise unknown("corruption", name, CORRUPTIONS)
