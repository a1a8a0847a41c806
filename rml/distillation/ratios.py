"""Ratios between teacher and label that are not learned: fixed, by the step, or by the example.

Each gives the share α of the teacher, see `fused_loss`, and works on arrays of any numbers, so that
ratios of many runs are one program.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.ops.shapes import check_shapes
from rml.ops.similarity import wide

Scalar = float | Float[Array, ""]


def linear_ratio(progress: Scalar, *, first: Scalar, last: Scalar) -> Float[Array, ""]:
    """Computes a ratio that moves from `first` to `last` as `progress` goes from 0 to 1."""
    return jnp.asarray(first + (last - first) * jnp.clip(progress, 0, 1))


def cosine_ratio(progress: Scalar, *, first: Scalar, last: Scalar) -> Float[Array, ""]:
    """Computes a ratio that moves along half a cosine: slowly at both ends."""
    share = (1 - jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2
    return jnp.asarray(first + (last - first) * share)


def correctness_ratio(
    teacher: Float[Array, "b k"], labels: Int[Array, " b"], *, right: Scalar, wrong: Scalar = 0.0
) -> Float[Array, " b"]:
    """Computes `right` where the teacher's most likely class is the label, else `wrong`.

    Raises:
      ValueError: If shapes do not fit.
    """
    check_shapes(teacher=(teacher, "n k"), labels=(labels, "n"))
    return jnp.where(jnp.argmax(teacher, axis=-1) == labels, right, wrong)


def entropy_ratio(
    teacher: Float[Array, "b k"], *, highest: Scalar, lowest: Scalar = 0.0
) -> Float[Array, " b"]:
    """Computes a ratio that falls from `highest` to `lowest` with the teacher's entropy.

    Args:
      teacher: The teacher's logits; a class of -inf adds nothing to the entropy.
      highest: Ratio where the teacher is sure.
      lowest: Ratio where all classes are equally likely to it.

    Returns:
      highest - (highest - lowest) H(T) / log k.

    Trust where the teacher is sure is the idea of adaptive ratios, which TGeo-KD
    (arXiv:2312.15112) is compared with. The formula is this repository's.
    """
    (logits,) = wide(teacher)
    logs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(logs) * jnp.where(logs > -jnp.inf, logs, 0), axis=-1)
    return highest - (highest - lowest) * entropy / jnp.log(max(teacher.shape[-1], 2))


def wls_ratio(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    labels: Int[Array, " b"],
    *,
    strength: Scalar = 2.5,
) -> Float[Array, " b"]:
    """Computes the ratio of weighted soft labels, a w / (1 + a w) of w = 1 - exp(-L_s / L_t).

    L_s and L_t are the student's and the teacher's cross-entropies of the label. The paper's loss
    L_gt + a w L_kd is that of the ratio, times 1 + a w.

    Args:
      student: The student's logits; no gradient flows through them.
      teacher: The teacher's logits.
      labels: Classes in [0, k).
      strength: Weight a of the teacher's part where the student is far worse, at least 0.

    Returns:
      Ratios in [0, a / (1 + a)], in float32 or wider.

    Raises:
      ValueError: If shapes do not fit.

    Source: Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
    Perspective, arXiv:2102.00650, with the strength of its public code.
    """
    check_shapes(student=(student, "n k"), teacher=(teacher, "n k"), labels=(labels, "n"))

    def loss(logits: Array) -> Array:
        (logits,) = wide(jax.lax.stop_gradient(logits))
        logs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logs, labels[:, None], axis=-1)[:, 0]

    own, known = loss(student), loss(teacher)
    # The quotient is bounded before the exponential, where a sure teacher makes it infinite.
    weight = -strength * jnp.expm1(-own / jnp.maximum(known, 1e-6))
    return weight / (1 + weight)
