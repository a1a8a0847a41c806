"""Weights of a merge, chosen by a score on validation data."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from rml.ops.shapes import check_count, check_shapes, check_whole


class Found(NamedTuple):
    """What a search over weights found.

    Attributes:
      weights: Those of the best score, the first of equal ones.
      at: Their place among the candidates.
      scores: Score of every candidate.
    """

    weights: Array
    at: Int[Array, ""]
    scores: Float[Array, " k"]


def grid_weights(count: int) -> Float[Array, "k 2"]:
    """Makes weights of two models in equal steps from (1, 0) to (0, 1), both ends among them.

    Args:
      count: Number of candidates, at least 2; 51 in the paper.

    Raises:
      ValueError: `count` is no whole number or below 2.

    Source: Matena and Raffel, arXiv:2111.09832, Section 3, and its public code.
    """
    check_whole(count=count)
    if count < 2:
        raise ValueError(f"count is {count}, expected at least 2: both ends are candidates")
    second = jnp.linspace(0.0, 1.0, count)
    return jnp.stack([1 - second, second], axis=1)


def dirichlet_weights(key: Key[Array, ""], *, models: int, draws: int) -> Float[Array, "k n"]:
    """Draws weights of several models uniformly from those that sum to one, Dirichlet(1, ..., 1).

    Args:
      key: Key of the draws.
      models: Number of models.
      draws: Number of candidates.

    Raises:
      ValueError: `models` or `draws` is no whole number of at least 1.

    Source: Matena and Raffel, arXiv:2111.09832, public code.
    """
    check_count(1, models=models, draws=draws)
    return jax.random.dirichlet(key, jnp.ones(models), (draws,))


def search_weights(
    merge: Callable[[Array], PyTree],
    evaluate: Callable[[PyTree], Float[Array, ""]],
    candidates: Float[Array, " k *w"],
    *,
    together: int = 1,
) -> Found:
    """Merges with every candidate in one program and takes the best.

    Call it inside `jax.jit`: outside of it each call compiles.

    Args:
      merge: `merge(weights) -> params`, traceable.
      evaluate: `evaluate(params) -> score`, traceable; it must not see the data that is reported.
      candidates: Weights, or other coefficients, of each try.
      together: Merges that live at once.

    Returns:
      The best candidate and all scores; one that is NaN is below all others.

    Raises:
      ValueError: There is no candidate, or `together` is no whole number of at least 1.
    """
    check_shapes(candidates=(candidates, "n ..."))
    check_count(1, together=together)
    scores = jax.lax.map(lambda own: evaluate(merge(own)), candidates, batch_size=together)
    at = jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores))
    return Found(candidates[at], at, scores)
