"""Masked language modelling: hidden tokens are predicted."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from rml.losses.reduction import reduced
from rml.ops.shapes import check_indices, check_shapes
from rml.ops.similarity import wide


def masked_lm(
    logits: Float[Array, "n p v"],
    targets: Int[Array, "n p"],
    *,
    where: Bool[Array, "n p"],
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the mean of -log p(target) over the tokens of each text that were hidden.

    A text without a hidden token has loss 0. The authors' code takes one mean over the hidden
    tokens of all texts, where a long text weighs more than a short one; here all weigh the same.

    Args:
      logits: Logits of the vocabulary at the p places of each of n texts.
      targets: Tokens that stood there.
      where: Mask of the places that count; logits and targets of the others may be anything.
      reduction: Mean over the texts ("mean"), or each text's loss ("none").

    Returns:
      The loss, in float32 or wider.

    Raises:
      ValueError: If shapes do not fit, `reduction` is unknown or, outside `jit`, a target that
        counts is out of range.

    Source: Devlin et al., BERT, arXiv:1810.04805, Section 3.1.
    """
    check_shapes(logits=(logits, "n p k"), targets=(targets, "n p"), where=(where, "n p"))
    # A target beyond the vocabulary has a loss of NaN, which the mask would not take away.
    targets = jnp.where(where, targets, 0)
    check_indices("targets", targets, logits.shape[2])
    logits = jnp.where(where[..., None], wide(logits)[0], 0.0)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    count = jnp.maximum(jnp.sum(where, axis=1), 1)
    return reduced(jnp.sum(values * where, axis=1) / count, reduction)
