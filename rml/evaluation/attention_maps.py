"""What attention matrices look like: how many keys they use, how far they smooth."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class AttentionMaps(NamedTuple):
    """Diagnostics of attention matrices, each [...] for weights of shape [..., t, s].

    Attributes:
      support: Number of keys that hold 95% of a query's weight, on average over queries.
      entropy: Entropy of a query's weights in nats, on average over queries.
      received: Largest share of all weight that one key receives, 1 for a pure sink.
      filter_rate: Largest singular value of (I - 1 1ᵀ / n) A: what is left of the differences
        between tokens after values were mixed, at most. 0 for uniform attention.
    """

    support: Float[Array, "*b"]
    entropy: Float[Array, "*b"]
    received: Float[Array, "*b"]
    filter_rate: Float[Array, "*b"]


@jax.jit
def attention_maps(
    weights: Float[Array, "*b t s"], mask: Bool[Array, "*#b t"] | None = None
) -> AttentionMaps:
    """Computes diagnostics of attention matrices whose rows sum to one.

    Args:
      weights: Weights of every query over keys.
      mask: Mask of text rather than padding, of queries, and of keys where there are as many; all
        by default. Weights of padding must be zero in rows of text.

    Returns:
      The diagnostics.

    Source: the filter rate is that of "Length-Induced Embedding Collapse in Transformer-based
    Models" (Zhou et al., 2024, arXiv:2410.24200), after Wang et al. (2022, arXiv:2203.05962).
    """
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    if mask is None:
        mask = jnp.ones(weights.shape[:-1], bool)
    mask = jnp.broadcast_to(mask, weights.shape[:-1])
    number = jnp.maximum(mask.sum(axis=-1), 1)
    weights = jnp.where(mask[..., None], weights, 0.0)

    def mean(x: Array) -> Array:
        return jnp.where(mask, x, 0.0).sum(axis=-1) / number

    upto = jnp.cumsum(-jnp.sort(-weights, axis=-1), axis=-1)
    support = 1.0 + jnp.sum(upto < 0.95, axis=-1)
    some = weights > 0
    entropy = -jnp.sum(
        jnp.where(some, weights * jnp.log(jnp.where(some, weights, 1.0)), 0), axis=-1
    )
    received = jnp.max(weights.sum(axis=-2), axis=-1) / number
    average = weights.sum(axis=-2, keepdims=True) / number[..., None, None]
    centred = jnp.where(mask[..., None], weights - average, 0.0)
    rate = jnp.linalg.svd(centred, compute_uv=False)[..., 0]
    return AttentionMaps(mean(support), mean(entropy), received, rate)


def high_frequency(x: Float[Array, "*b t d"], mask: Bool[Array, "*#b t"] | None = None) -> Any:
    """Subtracts their mean from tokens, which leaves what attention as a low-pass filter removes.

    Args:
      x: Tokens.
      mask: Mask of text rather than padding; all by default.

    Returns:
      [..., t, d], zero at padding.
    """
    if mask is None:
        return x - x.mean(axis=-2, keepdims=True)
    here = mask[..., None]
    number = jnp.maximum(mask.sum(axis=-1), 1)[..., None, None]
    return jnp.where(here, x - jnp.where(here, x, 0).sum(axis=-2, keepdims=True) / number, 0)
