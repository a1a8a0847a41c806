"""DINO: a student's distribution over prototypes follows that of its own moving average."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import reduced
from rml.ops.shapes import check_above_0, check_between, check_shapes


def dino(
    student: Float[Array, "s n k"],
    teacher: Float[Array, "t n k"],
    *,
    center: Float[Array, " k"],
    temperature: float | Float[Array, ""] = 0.1,
    teacher_temperature: float | Float[Array, ""] = 0.04,
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the cross-entropy of the teacher's and the student's distributions of other views.

    With P_t = softmax((teacher_t - center) / τ_t) and P_s = softmax(student_s / τ), the mean over
    pairs s ≠ t of -Σ_k P_tk log P_sk. Centering keeps one dimension from winning everywhere, the
    lower temperature of the teacher, which sharpens, keeps its distribution from becoming uniform.

        value = dino(student(views), teacher(views[:2]), center=center)
        center = update_center(center, teacher(views[:2]), momentum=0.9)

    Args:
      student: Outputs for all views, those of the teacher first and in its order.
      teacher: Outputs of the moving average, for the large crops; no gradient flows into them.
      center: Moving average of the teacher's outputs, see `update_center`.
      temperature: Temperature of the student, τ, above 0.
      teacher_temperature: Temperature of the teacher, τ_t, above 0.
      reduction: Mean over the examples, or each example's value.

    Returns:
      The value.

    Raises:
      ValueError: If shapes do not fit, `reduction` is unknown, or there is no pair of different
        views.

    Source: Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers
    (arXiv:2104.14294), eq. 1 to 3 and algorithm 1.
    """
    check_shapes(student=(student, "s n k"), teacher=(teacher, "t n k"), center=(center, "k"))
    check_above_0(temperature=temperature, teacher_temperature=teacher_temperature)
    students, teachers = student.shape[0], teacher.shape[0]
    if students < 2 or not 1 <= teachers <= students:
        raise ValueError(
            f"dino needs 2 views of the student or more and as many of the teacher at most, got "
            f"{students} and {teachers}"
        )
    wide = jnp.promote_types(student.dtype, jnp.float32)
    logits = (jax.lax.stop_gradient(teacher).astype(wide) - center) / teacher_temperature
    targets = jax.nn.softmax(logits, axis=-1)
    logs = jax.nn.log_softmax(student.astype(wide) / temperature, axis=-1)
    # All pairs of views from two sums, less a view's pair with itself.
    own = jnp.sum(targets * logs[:teachers], (0, -1))
    pairs = jnp.sum(targets.sum(0) * logs.sum(0), -1) - own
    return reduced(-pairs / (teachers * (students - 1)), reduction)


def update_center(
    center: Float[Array, " k"],
    teacher: Float[Array, "t n k"],
    *,
    momentum: float | Float[Array, ""] = 0.9,
) -> Float[Array, " k"]:
    """Moves DINO's center, momentum · center + (1 - momentum) · mean of the teacher's outputs.

    Raises:
      ValueError: If shapes do not fit, or `momentum` is not between 0 and 1.

    Source: Caron et al. 2021 (arXiv:2104.14294), eq. 4.
    """
    check_shapes(center=(center, "k"), teacher=(teacher, "t n k"))
    check_between(0, 1, momentum=momentum)
    mean = jnp.mean(jax.lax.stop_gradient(teacher).astype(center.dtype), axis=(0, 1))
    return momentum * center + (1 - momentum) * mean
