"""How hard attention is for HyperAttention: the numbers of its guarantee, of whole matrices.

Part of `rml.attention.hyperattention`, where the paper is named.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rml.attention.hyper_samples import HyperSettings, within
from rml.attention.sort_lsh import sorted_order
from rml.ops import full_precision
from rml.ops.attention_parts import scaled_logits
from rml.ops.shapes import check_above_0, check_shapes


def heavy_mask(
    query: Float[Array, "*b t k"],
    key: Float[Array, "*b s k"],
    planes: Float[Array, "p k"],
    settings: HyperSettings = HyperSettings(),  # noqa: B008
) -> Bool[Array, "*b t s"]:
    """Marks the keys that a query attends to exactly; quadratic, for tests and figures.

    Raises:
      ValueError: Shapes do not fit, or there is no query, key or feature.
    """
    _check(query, key)
    blocks = -(-key.shape[-2] // settings.block)
    rows = -(-query.shape[-2] // blocks)
    rest = jnp.arange(key.shape[-2]) >= settings.sinks
    of_queries = sorted_order(query, planes, order=settings.order)
    of_keys = sorted_order(
        key, planes, jnp.broadcast_to(rest, key.shape[:-1]), order=settings.order
    )
    places = [jnp.argsort(order, axis=-1) for order in (of_queries, of_keys)]
    first = (places[0] // rows * settings.block)[..., None]
    return within(places[1][..., None, :], first, settings) | ~rest


def _check(query: Array, key: Array) -> None:
    """Raises `ValueError` for shapes that do not fit, and without a query, key or feature."""
    check_shapes(query=(query, "... n k"), key=(key, "... s k"))
    check_above_0(keys=key.shape[-2])


class Hardness(NamedTuple):
    """The two numbers of which the paper's guarantee speaks.

    Attributes:
      alpha: n times the largest squared norm of a column of the attention matrix; 1 for uniform
        attention of n queries to n keys, n² where all of them attend to one key alone.
      kappa: Largest over smallest sum of a row's exponentials that are not in the mask; 1 where the
        mask has all of them, infinite where it has all of some rows only.
    """

    alpha: Float[Array, "*b"]
    kappa: Float[Array, "*b"]


@full_precision
def hardness(
    query: Float[Array, "*b t k"],
    key: Float[Array, "*b s k"],
    heavy: Bool[Array, "*#b t s"] | None = None,
    *,
    scale: float | None = None,
) -> Hardness:
    """Measures how hard an attention matrix is to approximate; quadratic, for analysis.

    Args:
      query: Queries.
      key: Keys.
      heavy: Entries that are computed exactly, of `heavy_mask`; none by default.
      scale: Factor of the logits; k^-1/2 by default.

    Returns:
      The two numbers, in float32 or wider.

    Raises:
      ValueError: Shapes do not fit, or there is no query, key or feature.

    Source: arXiv:2310.05869, the two parameters of the abstract; their names and alpha's factor n
    as we remember theorem 1.
    """
    _check(query, key)
    logits = scaled_logits(query, key, query.shape[-1] ** -0.5 if scale is None else scale)
    columns = jnp.sum(jnp.square(jax.nn.softmax(logits, axis=-1)), axis=-2)
    rest = logits if heavy is None else jnp.where(heavy, -jnp.inf, logits)
    rows = jax.nn.logsumexp(rest, axis=-1)
    most, least = jnp.max(rows, axis=-1), jnp.min(rows, axis=-1)
    # Equal sums may all be zero, whose logarithms have no difference.
    spread = jnp.where(most == least, 0, most - least)
    return Hardness(query.shape[-2] * jnp.max(columns, axis=-1), jnp.exp(spread))
