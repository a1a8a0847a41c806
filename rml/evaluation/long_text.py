"""Language models on long texts: nats a token by position, and needles that they have to find.

A model is given as two functions: `hidden` maps tokens [b, t] to last hidden states [b, t, d], and
`head` maps hidden states [..., d] to logits of the next token [..., v]. Logits exist for a few
positions at a time, so that a long text times a large vocabulary never does. A function from tokens
to logits serves as `hidden`, with the identity as `head`.

Several texts are read by calling both functions as they are given: the weights are those that they
hold at the call. Unless they are jitted, each of their operations is a program of its own; of
`functools.partial(jax.jit(apply), weights)` there is one for each shape, whatever the weights.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

CHUNK = 128
"""Positions whose logits exist at a time."""

Function = Callable[[jax.Array], jax.Array]


class Windows(NamedTuple):
    """A text in windows of one length.

    Attributes:
      tokens: Tokens of each window.
      counted: Tokens that are scored in this window; the text's first is in none.
    """

    tokens: Int[np.ndarray, "n w"]
    counted: Bool[np.ndarray, "n w"]


def sliding_windows(tokens: Int[np.ndarray, " t"], *, window: int, stride: int) -> Windows:
    """Cuts a text into overlapping windows that together count every token but the first once.

    Args:
      tokens: The text.
      window: Tokens of a window.
      stride: Tokens by which a window lies after the one before; the last may lie less far.

    Returns:
      The windows. A token is counted in the first window that holds it, thus after at least
      `window - stride` tokens of the same window, the first window's excepted.

    Raises:
      ValueError: If the text is shorter than a window, or the stride is not in 1 to `window - 1`.
    """
    t = len(tokens)
    if not 2 <= window <= t:
        raise ValueError(f"window={window}, expected 2 to the {t} tokens of the text")
    if not 1 <= stride < window:
        raise ValueError(f"stride={stride}, expected 1 to {window - 1}, below the window")
    starts = np.minimum(np.arange(0, t - window + stride, stride), t - window)
    places = starts[:, None] + np.arange(window)
    known = np.concatenate([[1], starts[:-1] + window])  # tokens counted before, or first of all
    return Windows(np.asarray(tokens)[places], places >= known[:, None])


def token_nats(
    hidden: Float[Array, "t d"], head: Function, tokens: Int[Array, " t"], *, chunk: int = CHUNK
) -> Float[Array, " t-1"]:
    """Computes -log p of every token but the first, given those before it, in nats.

    Call it inside `jax.jit`: outside of it each call compiles.

    Args:
      hidden: Hidden states of the text.
      head: Logits of the next token from hidden states.
      tokens: The text.
      chunk: Number of positions whose logits exist at a time.

    Returns:
      Nats of tokens 1 to t - 1, float32 or wider.
    """

    def of_one(pair: tuple[Array, Array]) -> Array:
        state, target = pair
        return _nats(head(state), target)

    return lax.map(of_one, (hidden[:-1], tokens[1:]), batch_size=chunk)


def _nats(logits: Float[Array, " v"], target: Int[Array, ""]) -> Float[Array, ""]:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.logsumexp(logits) - logits[target]


_nats_of_many = jax.jit(jax.vmap(_nats))


def window_nats(
    hidden: Function, head: Function, windows: Int[Array, "n w"], *, chunk: int = CHUNK
) -> Float[Array, "n w-1"]:
    """Computes nats of all tokens of several windows but their first, one window at a time.

    Args:
      hidden: Hidden states [b, w, d] of tokens [b, w].
      head: Logits of the next token from hidden states.
      windows: Tokens, such as those of `sliding_windows`.
      chunk: Number of positions whose logits exist at a time.
    """
    return jnp.stack([_nats_of_text(hidden, head, own, chunk) for own in jnp.asarray(windows)])


def _nats_of_text(hidden: Function, head: Function, tokens: Array, chunk: int) -> Array:
    parts = _chunks(hidden(tokens[None])[0], tokens, chunk)
    return jnp.concatenate([_nats_of_many(head(states), targets) for states, targets in parts])


@partial(jax.jit, static_argnames="chunk")  # one program instead of one a chunk
def _chunks(states: Array, tokens: Array, chunk: int) -> list[tuple[Array, Array]]:
    """Hidden states in parts, with the tokens that come after them."""
    starts = list(range(chunk, len(tokens) - 1, chunk))
    parts = jnp.split(states[:-1], starts), jnp.split(tokens[1:], starts)
    return list(zip(*parts, strict=True))


def sliding_nats(
    hidden: Function,
    head: Function,
    tokens: Int[np.ndarray, " t"],
    *,
    window: int,
    stride: int,
    chunk: int = CHUNK,
) -> Float[np.ndarray, " t-1"]:
    """Computes nats of every token of a long text but the first; exp of the mean is perplexity.

    Args:
      hidden: Hidden states [b, w, d] of tokens [b, w].
      head: Logits of the next token from hidden states.
      tokens: The text.
      window: Tokens that the model reads at a time.
      stride: Tokens that are scored in each window but the first.
      chunk: Number of positions whose logits exist at a time.

    Raises:
      ValueError: As `sliding_windows`.
    """
    cut = sliding_windows(tokens, window=window, stride=stride)
    found = window_nats(hidden, head, jnp.asarray(cut.tokens), chunk=chunk)
    return np.asarray(found)[cut.counted[:, 1:]]


def by_position(
    nats: Float[np.ndarray, "*b n"], edges: Sequence[int]
) -> Float[np.ndarray, "*b bins"]:
    """Averages nats of tokens 1 to n of a window over ranges of positions.

    Args:
      nats: Nats of tokens 1 to n, the window's first having none.
      edges: Ascending positions at which ranges begin, and where the last one ends.

    Raises:
      ValueError: If the edges do not ascend or leave the positions 1 to n + 1.
    """
    if len(edges) < 2 or edges[0] < 1 or edges[-1] > nats.shape[-1] + 1 or min(np.diff(edges)) < 1:
        raise ValueError(f"edges={tuple(edges)}, expected to ascend in 1 to {nats.shape[-1] + 1}")
    ends = itertools.pairwise(edges)
    return np.stack([nats[..., low - 1 : high - 1].mean(axis=-1) for low, high in ends], axis=-1)


class Haystack(NamedTuple):
    """A prompt with a needle.

    Attributes:
      tokens: The prompt.
      start: Place of the needle's first token.
    """

    tokens: Int[np.ndarray, " t"]
    start: int


def place_needle(
    document: Int[np.ndarray, " n"],
    needle: Int[np.ndarray, " m"],
    question: Int[np.ndarray, " q"],
    *,
    length: int,
    depth: float,
    ends: Collection[int] = (),
) -> Haystack:
    """Hides a sentence in a real document and asks for it at the end.

    Args:
      document: Tokens of the document, of which the first ones are used.
      needle: Tokens of the sentence.
      question: Tokens of the question, up to where the answer begins.
      length: Tokens of the prompt, needle and question included.
      depth: Place of the needle in the document used: 0 before all of it, 1 right before the
        question.
      ends: Tokens that end a sentence. Where given, the needle stands after the nearest of these,
        or before all of the document.

    Raises:
      ValueError: If the depth is not in 0 to 1, or the document does not fill the length.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth={depth}, expected 0 to 1")
    room = length - len(needle) - len(question)
    if not 1 <= room <= len(document):
        raise ValueError(
            f"length={length} leaves {room} tokens for a document of {len(document)} beside a "
            f"needle of {len(needle)} and a question of {len(question)}"
        )
    document = np.asarray(document)[:room]
    at = round(depth * room)
    if len(ends):
        breaks = np.append(0, 1 + np.flatnonzero(np.isin(document, list(ends))))
        at = int(breaks[np.argmin(np.abs(breaks - at))])
    return Haystack(np.concatenate([document[:at], needle, document[at:], question]), at)


def answer_scores(
    hidden: Function, head: Function, prompt: Int[Array, " t"], answers: Int[Array, "k a"]
) -> Float[Array, " k"]:
    """Computes log-likelihoods of answers of equally many tokens after a prompt, in nats.

    A small model that would not say the answer of its own accord may still prefer it to others.

    Args:
      hidden: Hidden states [b, t, d] of tokens [b, t].
      head: Logits of the next token from hidden states.
      prompt: The prompt; of one-token answers it is read once for all of them.
      answers: Tokens of each answer.
    """
    if answers.shape[1] == 1:
        return _ahead(hidden, head, prompt, answers[0])[0, answers[:, 0]]
    each = jnp.asarray(answers)
    return jnp.stack([_likelihood(_ahead(hidden, head, prompt, one), one) for one in each])


def _ahead(hidden: Function, head: Function, prompt: Array, answer: Array) -> Array:
    """Log-probabilities [a, v] of an answer's places."""
    states = hidden(jnp.concatenate([prompt, answer[:-1]])[None])[0, len(prompt) - 1 :]
    logits = head(states)
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


@jax.jit  # one program instead of one an operation
def _likelihood(ahead: Array, answer: Array) -> Array:
    """Log-likelihood of an answer by the log-probabilities of its places."""
    return jnp.take_along_axis(ahead, answer[:, None], axis=-1).sum()


def found_share(scores: Float[np.ndarray, "*b k"], right: Int[np.ndarray, "*b"]) -> float:
    """Computes the share of prompts whose right answer scores above all others; a tie is a miss."""
    right = np.asarray(right)[..., None]
    others = np.where(np.arange(scores.shape[-1]) == right, -np.inf, scores)
    return float((np.take_along_axis(scores, right, -1)[..., 0] > others.max(axis=-1)).mean())
