r"""Normalised softmax: cross-entropy among class vectors on the sphere, without pairs.

Pereira, Joly, Valduriez, Porto, Hyperspherical embedding for novel class classification,
arXiv:2102.03243; the loss is that of Wang et al., NormFace, arXiv:1704.06369.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.losses.infonce import info_nce
from rml.losses.reduction import reduced
from rml.ops.pairwise import safe_sqrt
from rml.ops.shapes import (
    check_above_0,
    check_between,
    check_count,
    check_finite,
    check_indices,
    check_shapes,
)
from rml.ops.similarity import normalize
from rml.ops.streaming import Pairs, row_values
from rml.ops.varying import varies_over, vary_alike

MARGINS = ("none", "cosine", "angle")
"""Kinds of margin: none, CosFace's on the cosine, ArcFace's on the angle."""


def normalized_softmax(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "k d"],
    *,
    scale: float | Float[Array, ""],
    margin: float | Float[Array, ""] = 0.0,
    margin_kind: str = "none",
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    r"""Computes the cross-entropy of cosines to class vectors.

    With $\theta_{ik}$ the angle between row i and class vector k and $s$ the scale:

    $$
    -\log \frac{e^{s\, t(\theta_{i y_i})}}
    {e^{s\, t(\theta_{i y_i})} + \sum_{k \neq y_i} e^{s \cos \theta_{ik}}}
    $$

    Here $t(\theta)$ is $\cos \theta$, with a margin m $\cos \theta - m$ ("cosine", CosFace) or
    $\cos(\theta + m)$ ("angle", ArcFace). Beyond $\theta = \pi - m$ the latter is
    $\cos \theta - m \sin m$, so that it falls everywhere. No row is compared with another: a step
    costs n k d products, and the matrix of logits is never held unless it is small.

    Args:
      features: Rows, not normalised.
      labels: Class of each row.
      prototypes: Class vectors, not normalised.
      scale: Length s of the representation, the inverse of a temperature; above 0.
      margin: Margin m, at least 0; of angles in radians and at most π.
      margin_kind: One of `MARGINS`.
      reduction: Mean over the rows, or each row's loss.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which rows and labels are sharded: the
        mean is that of the whole batch. Class vectors are the same along it; of other axes, which
        `rml.training.over_batch` leaves to the compiler, they may be sharded over any.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, `scale` is not above 0, a margin is out of its range or is
        given without a kind, `margin_kind` or `reduction` is unknown, `prototypes` are sharded over
        `axis_name` or, outside `jit`, a label is out of range.

    Source: Pereira et al., arXiv:2102.03243, with the scale and without a bias as in its public
    code; margins: Wang et al., CosFace, arXiv:1801.09414, eq. 4, and Deng et al., ArcFace,
    arXiv:1801.07698, eq. 3; beyond π - m as in the public code of the latter.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"), prototypes=(prototypes, "k d"))
    check_indices("labels", labels, len(prototypes))
    check_above_0(scale=scale)
    if margin_kind not in MARGINS:
        raise ValueError(f"margin_kind must be one of {', '.join(MARGINS)}, got {margin_kind!r}.")
    check_between(0, math.pi if margin_kind == "angle" else math.inf, margin=margin)
    check_finite(margin=margin)
    if margin_kind == "none" and isinstance(margin, int | float) and margin:
        raise ValueError(f"margin is {margin} and margin_kind 'none', expected a kind of margin.")
    if axis_name is not None and varies_over(prototypes, axis_name):
        raise ValueError(
            f"prototypes are sharded over {axis_name!r}, expected the same on all its devices"
        )
    rows, vectors = vary_alike(normalize(features), normalize(prototypes))
    if margin_kind == "none":
        loss = info_nce(
            rows, vectors, positives=labels, temperature=1 / scale, reduction=reduction,
            block_size=block_size,
        )  # fmt: skip
    else:
        cosine = jnp.sum(rows * jnp.take(vectors, labels, axis=0), axis=1)
        own = cosine - margin if margin_kind == "cosine" else _turned(cosine, margin)
        # Labels of eight bits could not hold the numbers of all classes.
        numbers = jnp.arange(len(vectors), dtype=jnp.result_type(labels, jnp.int32))
        others = row_values(
            scale * rows, vectors, mask=_other_class, block_size=block_size,
            pairs=Pairs(labels, numbers),
        )  # fmt: skip
        loss = reduced(jax.nn.softplus(others - scale * own), reduction)
    return jax.lax.pmean(loss, axis_name) if axis_name and reduction == "mean" else loss


def _other_class(row: Array, column: Array, label: Array, number: Array) -> Array:
    return label != number


def _turned(cosine: Array, margin: Float[Array, ""] | float) -> Array:
    """The cosine of an angle enlarged by the margin, and what continues it beyond π."""
    sine = safe_sqrt(jnp.maximum(1 - cosine**2, 0))
    turned = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
    return jnp.where(cosine >= -jnp.cos(margin), turned, cosine - margin * jnp.sin(margin))


def minimum_loss(classes: int, scale: float) -> float:
    r"""Computes the least value that the normalised softmax can have over balanced classes.

    It is $\log(1 + (k - 1) e^{-s k / (k - 1)})$: rows at their class vectors, these at the corners
    of a simplex, which needs k - 1 dimensions.

    Args:
      classes: Number of classes k, at least 2.
      scale: Scale s, above 0.

    Returns:
      The bound, in nats.

    Raises:
      ValueError: If there are fewer classes, or the scale is not above 0.

    Source: Wang et al., NormFace, arXiv:1704.06369, proposition 2, whose bound it is.
    """
    check_count(2, classes=classes)
    check_above_0(scale=scale)
    return math.log1p((classes - 1) * math.exp(-scale * classes / (classes - 1)))


def scale_for(classes: int, probability: float) -> float:
    r"""Computes the least scale with which rows can have a probability of their own class.

    It is $\frac{k - 1}{k} \log \frac{(k - 1) p}{1 - p}$, at which `minimum_loss` is $-\log p$.

    Args:
      classes: Number of classes k, at least 2.
      probability: The probability p, between 1 / k, which any scale reaches, and 1, which none
        does.

    Returns:
      The scale.

    Raises:
      ValueError: If there are fewer classes, or the probability is not between the two.

    Source: Wang et al., NormFace, arXiv:1704.06369, proposition 2 solved for the scale.
    """
    check_count(2, classes=classes)
    if not 1 / classes < probability < 1:
        raise ValueError(
            f"probability is {probability}, expected a number above {1 / classes:.4g}, which "
            f"{classes} classes have anyway, and below 1"
        )
    return (classes - 1) / classes * math.log((classes - 1) * probability / (1 - probability))
