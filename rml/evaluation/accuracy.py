"""Classification accuracy."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.evaluation.checks import require_finite, require_labels


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
      ValueError: If shapes do not fit, there are no rows, `k` is not between 1 and the number of
        classes or, outside `jit`, a label is out of range or a score is not finite.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"accuracy needs scores [n, c] and labels [n], got shapes {scores.shape} and "
            f"{labels.shape}"
        )
    rows, classes = scores.shape
    if rows == 0:
        raise ValueError(f"accuracy needs at least one row, got scores of shape {scores.shape}")
    if not 1 <= k <= classes:
        raise ValueError(f"k must be between 1 and the {classes} classes, got {k}")
    require_labels("labels", labels, rows=rows, num_classes=classes)
    require_finite("scores", scores)
    return _accuracy(scores, labels, k)


@partial(jax.jit, static_argnames="k")  # one program instead of one an operation
def _accuracy(scores: Array, labels: Array, k: int) -> Array:
    _, best = jax.lax.top_k(scores, k)
    return jnp.mean(jnp.any(best == labels[:, None], axis=1), dtype=jnp.float32)
