"""Distillation losses by name and by one signature, `loss(student, teacher, labels, **options)`.

All give a value of each example. Those on logits read logits [b, k]; those on features rows [b, d],
which a linear map brings to one width first where a loss needs it. The one on tokens is called
`loss(found, logits, tokens, labels, share=...)` and has the label's loss in it: `scalekd_loss`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.distillation.networks import Outputs
from rml.distillation.scalekd import scalekd_loss
from rml.errors import UserError
from rml.losses import (
    correlation_congruence,
    crd_loss,
    dist_loss,
    dkd_loss,
    fitnet_loss,
    kd_loss,
    rkd_angle,
    rkd_distance,
    soft_cross_entropy,
    target_enhanced_loss,
)


class Method(NamedTuple):
    """A distillation loss and what it reads.

    Attributes:
      loss: `loss(student, teacher, labels, **options)`, a value of each example.
      reads: "logits", "features" or "tokens".
      maps: "none", "student" where a trained linear map brings the student's features to the
        teacher's width, or "both" where each network has one.
      weight: Weight beside the cross-entropy of the label where `reads` is "features"; the paper's,
        its public code's or a usual one.
      share: Share of the teacher beside the cross-entropy of the label where `reads` is another. It
        is a half where both have the weight 1: DKD (arXiv:2203.08679, public code) with α = 1 and
        β = 8; DIST with β = γ = 1 and One-for-All, summed over outputs (both arXiv:2310.19444,
        public code); ScaleKD (arXiv:2411.06786, public code). KD has 0.9, as in the public
        benchmark of CRD's authors (arXiv:1910.10699).
      copies: Whether the loss is 0 where the student has the teacher's outputs.
    """

    loss: Callable[..., Float[Array, " b"]]
    reads: str = "logits"
    maps: str = "none"
    weight: float = 1.0
    share: float = 0.9
    copies: bool = True


METHODS: Mapping[str, Method] = {
    "kd": Method(kd_loss),
    "soft_cross_entropy": Method(soft_cross_entropy, copies=False),
    "dkd": Method(dkd_loss, share=0.5),
    "dist": Method(dist_loss, share=0.5),
    "ofa": Method(target_enhanced_loss, share=0.5, copies=False),
    "fitnet": Method(fitnet_loss, "features", "student"),
    "rkd_distance": Method(rkd_distance, "features", weight=25.0),
    "rkd_angle": Method(rkd_angle, "features", weight=50.0),
    "cc": Method(correlation_congruence, "features", weight=100.0),
    "crd": Method(crd_loss, "features", "both", weight=0.8, copies=False),
    "scalekd": Method(scalekd_loss, "tokens", share=0.5, copies=False),
}
"""Distillation losses by name."""


def loss_beside(
    method: Method,
    found: Outputs,
    ours: Float[Array, "b d"],
    theirs: Float[Array, "b e"],
    labels: Int[Array, " b"],
    *,
    options: Mapping[str, Any],
) -> Float[Array, " b"]:
    """Computes the loss of a student beside its teacher; one on logits is summed over exits too.

    Args:
      method: A method on logits or on features.
      found: Outputs of the student, of which exits are read.
      ours: Logits of the student, or its features after a map, see `Maps`.
      theirs: The same of the teacher.
      labels: Classes of the examples.
      options: Further arguments of the loss; of a tuple each exit and last the student's own logits
        have a number of their own.

    Returns:
      The loss of each example.

    Raises:
      UserError: An option has not a number for each output.
    """
    outputs = [ours]
    if found.exits is not None and method.reads == "logits":
        outputs = [*found.exits, ours]
    several = zip(outputs, _options(options, len(outputs)), strict=True)
    each = jnp.stack([method.loss(own, theirs, labels, **more) for own, more in several])
    return jnp.sum(each, axis=0)


def _options(options: Mapping[str, Any], outputs: int) -> list[dict[str, Any]]:
    """Options of the loss of each output of the student: of a tuple each has its own number."""
    several = {name: x for name, x in options.items() if isinstance(x, tuple)}
    for name, x in several.items():
        if len(x) != outputs or any(map(np.ndim, x)):
            raise UserError(
                f"{name} is {x}, expected one number, or one for each exit and the student's own "
                f"logits, {outputs} in all"
            )
    return [{**options, **{name: x[i] for name, x in several.items()}} for i in range(outputs)]
