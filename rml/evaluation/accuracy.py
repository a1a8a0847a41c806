"""Classification accuracy."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def accuracy(
    scores: Float[Array, "n c"], labels: Int[Array, " n"], *, k: int = 1
) -> Float[Array, ""]:
    """Computes the share of rows whose label is among the `k` classes with the highest scores.

    Among equal scores the lower class comes first.

    Args:
      scores: Logits, probabilities or votes.
      labels: True classes.
      k: Classes that may be named.

    Returns:
      A number between 0 and 1.

    Raises:
      ValueError: If there are no rows or `k` is not between 1 and the number of classes.
    """
    rows, classes = scores.shape
    if rows == 0:
        raise ValueError(f"accuracy needs at least one row, got scores of shape {scores.shape}")
    if not 1 <= k <= classes:
        raise ValueError(f"k must be between 1 and the {classes} classes, got {k}")
    return _accuracy(scores, labels, k)


@partial(jax.jit, static_argnames="k")  # one program instead of one an operation
def _accuracy(scores: Array, labels: Array, k: int) -> Array:
    _, best = jax.lax.top_k(scores, k)
    return jnp.mean(jnp.any(best == labels[:, None], axis=1), dtype=jnp.float32)
