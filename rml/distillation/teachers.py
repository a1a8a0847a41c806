"""What is known of a teacher before a student is trained."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.ops.shapes import check_indices, check_shapes
from rml.ops.similarity import wide


def teacher_means(
    probabilities: Float[Array, "n k"], labels: Int[Array, " n"], *, classes: int
) -> Float[Array, "c k"]:
    """Computes T̄, the mean of a teacher's probabilities over the examples of each class.

    It is a sum by segments: parts of a data set are added, and their counts. Take probabilities of
    images without augmentation, of the teacher as it is evaluated.

    Args:
      probabilities: The teacher's probabilities of training examples.
      labels: Their labels, as the student is given them.
      classes: Number c of classes.

    Returns:
      The means in float32 or wider; of a class without examples the mean of all.

    Raises:
      ValueError: If shapes do not fit, or, outside `jit`, a label is out of range.

    Source: TGeo-KD, arXiv:2312.15112, abstract: the teacher's global average prediction.
    """
    check_shapes(probabilities=(probabilities, "n k"), labels=(labels, "n"))
    check_indices("labels", labels, classes)
    (chances,) = wide(probabilities)
    sums = jax.ops.segment_sum(chances, labels, classes)
    counts = jax.ops.segment_sum(jnp.ones(labels.shape, chances.dtype), labels, classes)[:, None]
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), jnp.mean(chances, axis=0))
