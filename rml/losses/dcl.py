"""Decoupled contrastive learning: the positive is left out of the denominator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import check_reduction
from rml.ops.shapes import check_above_0, check_shapes
from rml.ops.similarity import normalize
from rml.ops.streaming import Pairs, symmetric_logsumexp


def _other_example(row: Array, col: Array, row_label: Array, col_label: Array) -> Array:
    return row_label != col_label


def dcl(
    a: Float[Array, "n d"],
    b: Float[Array, "n d"],
    *,
    temperature: float | Float[Array, ""],
    sigma: float | Float[Array, ""] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Float[Array, ""] | Float[Array, " k"]:
    """Computes the decoupled contrastive loss of two views, weighted (DCLW) if `sigma` is given.

    Args:
      a: First views, not normalised; at least two examples.
      b: Second views, row i of the same example as row i of `a`.
      temperature: Divides the cosine similarities; above 0.
      sigma: Width of DCLW's von Mises-Fisher weights `2 - exp(c_i / σ) / mean exp(c / σ)` of the
        positive terms, c the cosines of positives; the paper uses 0.5. The weights are
        differentiated as the equation stands; lightly and the authors' code hold them constant.
      reduction: Mean over the 2n anchors, or each anchor's loss, those of `a` first.
      block_size: Rows of one strip of logits; automatic by default.

    Returns:
      The loss. The negatives of an anchor are both views of the other examples, as in eq. 5.

    Raises:
      ValueError: If shapes do not fit, there is but one example, which has no negatives,
        `reduction` is unknown, or `temperature` or `sigma` is not above 0.

    Source: Yeh et al. 2022, Decoupled Contrastive Learning, eq. 5 and 6.
    """
    check_shapes(a=(a, "n d"), b=(b, "n d"))
    check_reduction(reduction)
    check_above_0(temperature=temperature, sigma=sigma)
    n = a.shape[0]
    if n < 2:
        raise ValueError(f"dcl needs at least two examples for negatives, got {n}.")
    z = normalize(jnp.concatenate([a, b]))
    z = z / jnp.sqrt(jnp.asarray(temperature, z.dtype))
    positive = jnp.sum(z[:n] * z[n:], axis=-1)
    if sigma is not None:
        weight = 2 - n * jax.nn.softmax(positive * temperature / sigma)
        positive = weight * positive
    examples = jnp.tile(jnp.arange(n), 2)
    negatives = symmetric_logsumexp(
        z, mask=_other_example, pairs=Pairs(examples), block_size=block_size
    )
    if reduction == "none":
        return negatives - jnp.tile(positive, 2)
    return jnp.mean(negatives) - jnp.mean(positive)
