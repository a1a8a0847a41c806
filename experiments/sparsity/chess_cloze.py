"""The true next line among four: a choice that a decoder makes of texts, dense or thinned out."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rml.data import tokens
from rml.data.errors import DataError
from rml.models import Thresholds

CHOICES = 4
SHORTEST = 16
"""Characters of the shortest line that is a choice."""


class Choices(NamedTuple):
    """Beginnings of documents, each with lines of which the first is the true next one.

    Attributes:
      contexts: Tokens before the line, [n, c].
      lines: Tokens of the lines, [n, 4, l], with padding after them.
      sizes: Number of tokens of each line, [n, 4].
    """

    contexts: np.ndarray
    lines: np.ndarray
    sizes: np.ndarray


def draw_choices(
    tokenizer: Any,
    documents: Sequence[str],
    *,
    rng: np.random.Generator,
    count: int,
    context: int,
    line: int,
) -> Choices:
    """Takes from each document the first line after enough tokens, and three later ones.

    Lines are made tokens one by one, so that no token reaches over the end of one.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      documents: Documents, tried in their order.
      rng: What draws the later lines, all different from one another, and from the true one also
        where they are cut off.
      count: Number of documents to find.
      context: Tokens before the line.
      line: Tokens after which lines are cut off.

    Raises:
      DataError: There are fewer such documents.
    """
    contexts: list[np.ndarray] = []
    lines: list[list[np.ndarray]] = []
    for document in documents:
        rows = document.splitlines(keepends=True)
        encoded = tokens.encode(tokenizer, rows, max_length=2**30, special=False)
        before = np.cumsum([0, *map(len, encoded)])
        fit = [i for i, row in enumerate(rows)
               if before[i] >= context and len(row.strip()) >= SHORTEST]  # fmt: skip
        # Where they are cut off, a line that equals the true one would count as right.
        cut = {i: tuple(encoded[i][:line]) for i in fit}
        later = sorted({rows[i]: i for i in fit if cut[i] != cut[fit[0]]}.values())
        if len(later) < CHOICES - 1:
            continue
        drawn = rng.choice(later, CHOICES - 1, replace=False)
        contexts.append(np.concatenate(encoded[: fit[0]])[-context:])
        lines.append([encoded[i][:line] for i in (fit[0], *drawn)])
        if len(contexts) == count:
            padded = [[np.pad(one, (0, line - len(one))) for one in own] for own in lines]
            sizes = [[len(one) for one in own] for own in lines]
            return Choices(np.stack(contexts), np.array(padded, np.int32), np.array(sizes))
    raise DataError(
        f"{len(contexts)} of {len(documents)} documents have {CHOICES} lines to choose among after "
        f"{context} tokens, expected {count}"
    )


def odds(module: Any, variables: Any, choices: Choices, thresholds: Thresholds) -> np.ndarray:
    """Probabilities of the lines, [n, 4]: a softmax of their mean log-probabilities a token."""
    given = jax.tree.map(jnp.asarray, choices)
    return np.asarray(jax.nn.softmax(_scores(module, variables, given, thresholds), axis=1))


@functools.partial(jax.jit, static_argnames="module")
def _scores(module: Any, variables: Any, choices: Choices, thresholds: Thresholds) -> Array:
    """Mean log-probability a token of every line, [n, 4]; a context is read once for its lines."""
    length = choices.contexts.shape[1] + choices.lines.shape[2]

    def read(tokens: Array, cache: Any) -> Any:
        return module.apply(variables, tokens, cache=cache, thresholds=thresholds)

    def of_document(own: Any) -> Array:
        cache = read(own.contexts[None, :-1], module.init_cache(1, length)).cache
        key, value = (jnp.repeat(x, CHOICES, axis=1) for x in (cache.key, cache.value))
        mask, been = (jnp.repeat(x, CHOICES, axis=0) for x in (cache.mask, cache.read))
        cache = cache.replace(key=key, value=value, mask=mask, read=been)
        last = jnp.broadcast_to(own.contexts[-1], (CHOICES, 1))
        states = read(jnp.concatenate([last, own.lines[:, :-1]], axis=1), cache)
        logits = jnp.asarray(module.apply(variables, states.last, method="logits"))
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), own.lines[..., None], -1)[..., 0]
        there = jnp.arange(own.lines.shape[1]) < own.sizes[:, None]
        return jnp.sum(found * there, axis=1) / own.sizes

    return jax.lax.map(of_document, choices)
