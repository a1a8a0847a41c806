"""Means of classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.ops.similarity import wide


def class_means(
    rows: Float[Array, "n d"], labels: Int[Array, " n"], *, num_classes: int
) -> Float[Array, "c d"]:
    """Averages every class's rows in float32 or wider, to zero for a class without rows."""
    (rows,) = wide(rows)
    members = jax.nn.one_hot(labels, num_classes, dtype=rows.dtype)
    return members.T @ rows / jnp.maximum(jnp.sum(members, axis=0), 1)[:, None]
