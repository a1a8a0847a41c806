"""Decoupled contrastive learning: the positive is left out of the denominator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops.similarity import normalize
from rml.ops.streaming import Pairs, symmetric_logsumexp


def _other_example(row: Array, col: Array, row_label: Array, col_label: Array) -> Array:
    return row_label != col_label


def dcl(
    a: Float[Array, "n d"],
    b: Float[Array, "n d"],
    *,
    temperature: float | Float[Array, ""],
    sigma: float | None = None,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Computes the decoupled contrastive loss of two views, weighted (DCLW) if `sigma` is given.

    Args:
      a: First views, not normalised; at least two examples.
      b: Second views, row i of the same example as row i of `a`.
      temperature: Divides the cosine similarities.
      sigma: Width of DCLW's von Mises-Fisher weights `2 - exp(c_i / σ) / mean exp(c / σ)` of the
        positive terms, c the cosines of positives; the paper uses 0.5. The weights are
        differentiated as the equation stands.
      block_size: Rows of one strip of logits; automatic by default.

    Returns:
      The mean loss over the 2n anchors.

    Raises:
      ValueError: If there is but one example, which has no negatives.

    Source: Yeh et al. 2022, Decoupled Contrastive Learning, eq. 5 and 6.
    """
    n = a.shape[0]
    if n < 2:
        raise ValueError(f"dcl needs at least two examples for negatives, got {n}.")
    root = jnp.sqrt(jnp.asarray(temperature, jnp.float32))
    z = normalize(jnp.concatenate([a, b])) / root
    positive = jnp.sum(z[:n] * z[n:], axis=-1)
    if sigma is not None:
        weight = 2 - n * jax.nn.softmax(positive * temperature / sigma)
        positive = weight * positive
    examples = jnp.tile(jnp.arange(n), 2)
    negatives = symmetric_logsumexp(
        z, mask=_other_example, pairs=Pairs(examples), block_size=block_size
    )
    return jnp.mean(negatives) - jnp.mean(positive)
