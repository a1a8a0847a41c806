"""Whether embeddings of long texts are more alike than those of short ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from rml.ops.precision import full_precision
from rml.ops.similarity import normalize


class ByLength(NamedTuple):
    """What embeddings are like in bins of their texts' lengths.

    Attributes:
      similarity: Mean cosine of two different texts of a bin; NaN where there are fewer than two.
      spread: Mean distance of unit embeddings to the centre of all bins; NaN where there are none.
      number: Number of texts.
    """

    similarity: Float[Array, " bins"]
    spread: Float[Array, " bins"]
    number: Int[Array, " bins"]


@full_precision
def similarity_by_length(
    embeddings: Float[Array, "n d"], lengths: Num[Array, " texts"], edges: Num[Array, " ends"]
) -> ByLength:
    """Measures embeddings in bins of length.

    Args:
      embeddings: One row a text.
      lengths: Number of tokens of each.
      edges: Ascending ends of the bins: bin i has the lengths from `edges[i]` up to, and without,
        `edges[i + 1]`. Texts outside are left out.

    Returns:
      The measures of each bin.

    Raises:
      ValueError: There is not one length a text, or the edges do not ascend.

    Source: arXiv:2410.24200 measures length collapse by cosines of texts of a length.
    """
    if lengths.shape != embeddings.shape[:1]:
        raise ValueError(f"lengths {lengths.shape} do not fit embeddings {embeddings.shape}")
    if edges.size < 2 or (
        not isinstance(edges, jax.core.Tracer) and bool(jnp.any(edges[1:] <= edges[:-1]))
    ):
        raise ValueError(f"edges={edges}, expected at least two, ascending")
    x = normalize(embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32)))
    lower, upper = edges[:-1, None], edges[1:, None]
    within = ((lengths >= lower) & (lengths < upper)).astype(x.dtype)  # [bins, n]
    count = within.sum(axis=1)
    sums = within @ x
    # All ordered pairs, less each text with itself.
    pairs = jnp.sum(sums * sums, axis=1) - within @ jnp.sum(x * x, axis=1)
    some = jnp.maximum(count * (count - 1), 1)
    every = jnp.maximum(count.sum(), 1)
    far = jnp.linalg.norm(x - sums.sum(axis=0) / every, axis=1)
    return ByLength(
        jnp.where(count > 1, pairs / some, jnp.nan),
        jnp.where(count > 0, within @ far / jnp.maximum(count, 1), jnp.nan),
        count.astype(jnp.int32),
    )
