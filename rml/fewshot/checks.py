"""What every few-shot method asks of its episode."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.errors import UserError
from rml.evaluation.checks import require_finite, require_labels, require_same_width


def require_episode(support: Array, support_labels: Array, query: Array, num_classes: int) -> None:
    """Raises `ValueError` unless these are an episode; inside `jit` only shapes can be checked.

    Asked are: rows of one width, a query, one label in [0, num_classes) for each support row, every
    class in the support, finite features.
    """
    rows = support.shape[0]
    require_same_width("support", support, "query", query)
    if query.shape[0] == 0:
        raise UserError(f"query has the shape {query.shape}, expected at least one row")
    if num_classes > rows:
        raise UserError(
            f"{num_classes} classes need at least as many support rows, got {rows}: "
            "every class needs an example"
        )
    require_labels("support_labels", support_labels, rows=rows, num_classes=num_classes)
    require_finite("support", support)
    require_finite("query", query)
    if isinstance(support_labels, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():  # constants of a jitted function are known
        counts = jnp.bincount(support_labels, length=num_classes)
    if missing := [k for k, count in enumerate(counts.tolist()) if count == 0]:
        raise UserError(
            f"every class needs a support example, got none of {missing} among {num_classes} "
            "classes"
        )


def one_hot(labels: Int[Array, " s"], num_classes: int, like: Array) -> Float[Array, "s c"]:
    """Encodes labels as rows of the identity, in the type of `like`."""
    return jax.nn.one_hot(labels, num_classes, dtype=like.dtype)
