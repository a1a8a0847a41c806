"""Trilateral geometry: of each example a network chooses how much the teacher has to say.

Hu et al., Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation
(TGeo-KD), arXiv:2312.15112, ICLR 2024. Student S, teacher T and ground truth G are points of one
space, the distributions over classes; their triangle, and T̄, the teacher's mean over the examples
of a class, say which of the two to follow. The authors' code is not public and the paper leaves
the encoding open: it, the network's sizes and the look-ahead of one step are readings of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rml.errors import unknown
from rml.models.layers import dense
from rml.ops.pairwise import safe_sqrt
from rml.ops.shapes import check_shapes
from rml.ops.similarity import wide
from rml.training.bilevel import Lookahead, lookahead_weights

EDGES = ("st", "sg", "tg")
"""Sides of the triangle: student and teacher, student and truth, teacher and truth."""
FORMS = ("squared", "signed", "norm")
"""Entrywise squares, entrywise differences, or the length of each side alone."""


def relations(
    student: Float[Array, "b k"],
    teacher: Float[Array, "b k"],
    truth: Float[Array, "b k"],
    mean: Float[Array, "b k"] | None = None,
    *,
    edges: Sequence[str] = EDGES,
    inter: bool = True,
    form: str = "squared",
    vertices: bool = True,
) -> Float[Array, "b r"]:
    """Encodes the triangle of each example, and its place beside the teacher's mean.

    Δ = [S, T, G, T̄, (T̄ - S)², (G - S)², (T - S)², (T - G)², (T̄ - G)²] of 9k numbers, entrywise;
    a side that `edges` lacks is left out. No gradient flows through Δ.

    Args:
      student: The student's probabilities S.
      teacher: The teacher's probabilities T.
      truth: Probabilities of the ground truth G, one-hot.
      mean: The teacher's mean T̄ over the training examples of the example's class, see
        `teacher_means`.
      edges: Sides that are encoded, of "st", "sg" and "tg".
      inter: Whether the sides with T̄, the relations between examples, are encoded.
      form: "squared", "signed" for differences, or "norm" for one Euclidean length a side.
      vertices: Whether the points themselves are encoded; those with "norm" are left out always,
        so that the encoding does not grow with the classes.

    Returns:
      The relations: points first, then sides, in the order of Δ.

    Raises:
      ValueError: If a side or a form is unknown, no side is left, T̄ is wanted and not given, or
        shapes differ.

    Source: TGeo-KD, arXiv:2312.15112, eq. 9 for T̄; entries as a public re-implementation has them.
    """
    for edge in edges:
        if edge not in EDGES:
            raise unknown("edge of the triangle", edge, EDGES)
    if form not in FORMS:
        raise unknown("form of relations", form, FORMS)
    if not edges:
        raise ValueError(f"edges is empty, expected some of {', '.join(EDGES)}")
    if inter and mean is None:
        raise ValueError("inter is True and mean is not given, expected the teacher's means [b, k]")
    check_shapes(
        student=(student, "n k"), teacher=(teacher, "n k"), truth=(truth, "n k"),
        mean=(mean if inter else None, "n k"),
    )  # fmt: skip
    points = [student, teacher, truth] + ([mean] if inter and mean is not None else [])
    points = list(wide(*map(jax.lax.stop_gradient, points)))
    s, t, g, *rest = points
    sides = {"sg": g - s, "st": t - s, "tg": t - g}
    parts = [side for name, side in sides.items() if name in edges]
    for average in rest:
        parts = [average - s, *parts, average - g]
    if form == "norm":
        lengths = [safe_sqrt(jnp.sum(part * part, axis=-1, keepdims=True)) for part in parts]
        return jnp.concatenate(lengths, axis=-1)
    if form == "squared":
        parts = [part * part for part in parts]
    return jnp.concatenate(points * vertices + parts, axis=-1)


class FusionRatio(nn.Module):
    """Network from relations [b, r] to the ratio of each example in (0, 1).

    Attributes:
      hidden: Widths of the hidden layers.
      slope: Slope of the leaky ReLU below 0.

    Source: TGeo-KD, arXiv:2312.15112, abstract: a simple network; sizes and activations are those
    of a public re-implementation.
    """

    hidden: Sequence[int] = (32, 16)
    slope: float = 0.01

    @nn.compact
    def __call__(self, x: Float[Array, "b r"]) -> Float[Array, " b"]:
        """Computes the ratio of each example."""
        for i, width in enumerate(self.hidden):
            x = nn.leaky_relu(dense(width, (None, None), name=f"dense{i}")(x), self.slope)
        return nn.sigmoid(dense(1, (None, None), name="out")(x)[:, 0])


def fused_loss(
    ratio: Float[Array, " b"], kd: Float[Array, " b"], gt: Float[Array, " b"]
) -> Float[Array, " b"]:
    """Computes α L_kd + (1 - α) L_gt of each example; no gradient flows through the ratio α.

    Args:
      ratio: Share α of the teacher in [0, 1].
      kd: Loss beside the teacher, see `rml.losses.kd_loss`.
      gt: Loss beside the label.

    Raises:
      ValueError: If shapes do not fit.

    Source: TGeo-KD, arXiv:2312.15112.
    """
    check_shapes(ratio=(ratio, "n"), kd=(kd, "n"), gt=(gt, "n"))
    ratio = jax.lax.stop_gradient(ratio)
    return ratio * kd + (1 - ratio) * gt


def ratio_lookahead(
    ratio_of: Callable[[PyTree], Float[Array, " b"]],
    losses: Callable[[PyTree], tuple[Float[Array, " b"], Float[Array, " b"]]],
    outer_loss: Callable[[PyTree], Float[Array, ""]],
    student: PyTree,
    outer: PyTree,
    *,
    learning_rate: float | Float[Array, ""],
) -> tuple[Float[Array, " b"], Lookahead]:
    """Computes what ratios owe to a validation loss after one step of the student.

    The exact gradient by ω of outer(θ - η ∇_θ mean(α(ω) L_kd + (1 - α(ω)) L_gt)), by the inner
    products -(η/b) ⟨∇outer(θ'), ∇L_kd,i - ∇L_gt,i⟩ of `lookahead_weights`: the ratio of an example
    rises where a step towards the teacher helps more than one towards the label.

    Args:
      ratio_of: `ratio_of(ω)`, the ratio of each example.
      losses: `losses(θ)`, of each example L_kd and L_gt.
      outer_loss: `outer_loss(θ')`, the loss on validation data.
      student: Parameters θ of the student.
      outer: Parameters ω of the ratio.
      learning_rate: Length η of the step ahead.

    Returns:
      The ratios, and the validation loss after the step with its gradient by ω.

    Source: TGeo-KD, arXiv:2312.15112, eq. 5 and 6, where the solution is left open.
    """
    ratio, back = jax.vjp(ratio_of, outer)
    weights = jnp.stack([ratio, 1 - ratio], axis=-1)
    found = lookahead_weights(
        lambda theta: jnp.stack(losses(theta), axis=-1),
        outer_loss, student, weights, learning_rate=learning_rate,
    )  # fmt: skip
    of_ratio = found.gradient[:, 0] - found.gradient[:, 1]
    (gradient,) = back(of_ratio.astype(ratio.dtype))
    return ratio, found._replace(gradient=gradient)


def saturation(ratio: Float[Array, " b"], *, margin: float = 0.01) -> dict[str, Any]:
    """Computes mean and standard deviation of ratios, and the share within a margin of 0 or 1.

    Raises:
      ValueError: If there is no ratio.
    """
    check_shapes(ratio=(ratio, "n"))
    ends = jnp.minimum(ratio, 1 - ratio) < margin
    return {"mean": jnp.mean(ratio), "deviation": jnp.std(ratio), "at_ends": jnp.mean(ends)}
