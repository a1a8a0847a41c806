"""Cross-entropy with smoothed labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from rml.ops.shapes import check_indices, check_shapes
from rml.ops.similarity import wide


def smoothed_cross_entropy(
    logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    *,
    smoothing: float | Float[Array, ""],
) -> Float[Array, " b"]:
    """Computes -Σ_k t_k log p_k, where the target t has its label smoothed.

    With c classes the label has 1 - smoothing + smoothing / c of the target, each other class
    smoothing / c. The loss is least, the target's entropy, at p = t.

    Args:
      logits: Logits of the classes.
      labels: Classes in [0, c).
      smoothing: Share of the target that is spread evenly over all classes, in [0, 1].

    Returns:
      The loss of each example, in float32 or wider.

    Raises:
      ValueError: If shapes do not fit or, outside `jit`, a label or `smoothing` is out of range.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision,
    arXiv:1512.00567, Section 7.
    """
    check_shapes(logits=(logits, "n k"), labels=(labels, "n"))
    check_indices("labels", labels, logits.shape[1])
    if not isinstance(smoothing, jax.core.Tracer) and not 0 <= np.asarray(smoothing) <= 1:
        raise ValueError(f"smoothing must lie between 0 and 1, got {smoothing}")
    (logits,) = wide(logits)
    targets = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, smoothing)
    return -sum_of_products(targets, jax.nn.log_softmax(logits, axis=-1))


def sum_of_products(
    weights: Float[Array, "*#b k"], logs: Float[Array, "*#b k"]
) -> Float[Array, "..."]:
    """Sums w log p over classes, to which one of weight 0 adds nothing, -inf being its logarithm.

    Args:
      weights: Weight of each class.
      logs: Logarithm of its probability.
    """
    return jnp.sum(weights * jnp.where(weights == 0, 0, logs), axis=-1)
