"""Prototypical loss: queries are classified by their distances to class means of a support."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rml.ops.class_means import class_means
from rml.ops.pairwise import squared_euclidean
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_count, check_indices, check_shapes
from rml.ops.similarity import wide


@full_precision
def prototypical_loss(
    support: Float[Array, "n d"],
    support_labels: Int[Array, " n"],
    query: Float[Array, "q d"],
    query_labels: Int[Array, " q"],
    *,
    num_classes: int,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, ""]:
    """Computes the cross-entropy of an episode by minus squared distances to class means.

    Args:
      support: Support rows.
      support_labels: Their classes in the episode, each of which has a row.
      query: Query rows.
      query_labels: Their classes in the episode.
      num_classes: Number of classes of the episode.
      temperature: Divides the squared distances; above 0.

    Returns:
      The mean over queries.

    Raises:
      ValueError: If shapes do not fit, `temperature` is not above 0, there is no class or, outside
        `jit`, a label is out of range.

    Source: Snell, Swersky, Zemel, Prototypical Networks for Few-shot Learning, arXiv:1703.05175,
    eq. 1 and 2.
    """
    check_shapes(
        support=(support, "n d"), support_labels=(support_labels, "n"), query=(query, "q d")
    )
    check_shapes(query=(query, "n d"), query_labels=(query_labels, "n"))
    check_count(1, num_classes=num_classes)
    check_indices("support_labels", support_labels, num_classes)
    check_indices("query_labels", query_labels, num_classes)
    check_above_0(temperature=temperature)
    means = class_means(support, support_labels, num_classes=num_classes)
    (rows,) = wide(query)
    logits = -squared_euclidean(rows, means) / temperature
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, query_labels))
