"""Two views of features: as they are, and without what all positions of an image share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops.similarity import normalize, wide


def mimic(
    student: Float[Array, "b t d"], teacher: Float[Array, "_ _ _"], *, remove_mean: bool = False
) -> Float[Array, " b"]:
    """Computes the mean over positions of ‖s/‖s‖ - t/‖t‖‖², which is 2 (1 - cos(s, t)).

    With `remove_mean` the mean over an image's positions is subtracted from each channel of both
    first. This is what setting the coefficient of frequency 0 of a two-dimensional cosine transform
    to 0 does, without the transform. What is left has no constant part that could hide the rest.

    The paper's sum over a grid of 7x7 positions is 49 times this mean, which does not grow with the
    grid.

    Args:
      student: Features of the student in the teacher's grid and width.
      teacher: Features of the teacher; no gradient flows into them.
      remove_mean: Whether the view is the alternative one rather than the direct one.

    Returns:
      The loss of each example in [0, 4], in float32 or wider. Where one of two features is zero, as
      in the alternative view of a constant map, its position counts 1.

    Raises:
      ValueError: The shapes differ.

    Source: Fan et al., ScaleKD, arXiv:2411.06786, dual-view feature mimicking, and its public code
    (deep-optimization/ScaleKD at 478a7db).
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features of the student have shape {student.shape}, those of the teacher "
            f"{teacher.shape}, expected one shape"
        )
    pair = wide(student, jax.lax.stop_gradient(teacher))
    if remove_mean:
        # The rounded mean of equal values may lie beside them, and a unit vector of the difference
        # would be noise: differences from the first position are exactly zero there.
        shifted = [x - x[:, :1] for x in pair]
        pair = tuple(x - jnp.mean(x, axis=1, keepdims=True) for x in shifted)
    ours, theirs = map(normalize, pair)
    return jnp.mean(jnp.sum((ours - theirs) ** 2, axis=-1), axis=-1)


def dual_view(
    views: Float[Array, "2 b t d"],
    teacher: Float[Array, "b t d"],
    *,
    direct: float | Float[Array, ""],
    alternative: float | Float[Array, ""],
) -> Float[Array, " b"]:
    """Computes direct · `mimic` of the first view and alternative · `mimic` of the second.

    Args:
      views: Features of a student by two projectors, one for the direct and one for the alternative
        view.
      teacher: Features of the teacher.
      direct: Weight of the direct view; the public code has 0.08 · 49 = 3.92.
      alternative: Weight of the view without the mean; the public code has 0.06 · 49 = 2.94.

    Returns:
      The loss of each example.

    Source: Fan et al., ScaleKD, arXiv:2411.06786.
    """
    whole, varying = (mimic(own, teacher, remove_mean=i == 1) for i, own in enumerate(views))
    return direct * whole + alternative * varying
