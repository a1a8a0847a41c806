"""Softmax attention to the blocks of keys that a pattern names."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from rml.ops.attention_blocks import blocks_of, place_of
from rml.ops.attention_parts import OfPlaces, Part, Visible
from rml.ops.blocked_attention import Visits, in_blocks


def block_sparse_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    pattern: Bool[np.ndarray, "#h q n"] | Bool[Array, "#h q n"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    block: int,
    scale: float | None = None,
    factor: OfPlaces | None = None,
    bias: OfPlaces | None = None,
) -> Part:
    """Attends to the blocks of keys that a pattern names for each head and block of queries.

    Work and time follow the pattern: blocks outside it are not computed. Derivatives are those of
    `attend_in_blocks`.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys; g divides h.
      value: Values.
      pattern: Which blocks of keys each block of queries visits, one for all heads or one for
        each; a constant, or drawn within the program.
      visible: Which keys of a visited block a query may see.
      block: Queries and keys of one block. The last may be short.
      scale: Factor of the logits; k^-1/2 by default.
      factor: What logits are multiplied by, of places.
      bias: What is added to them then, of places.

    Returns:
      Output [b, h, t, v] and log-sum-exp [b, h, t], float32 or wider; 0 and -inf where a query
      sees nothing.

    Raises:
      ValueError: If the pattern does not fit the heads or the number of blocks, or a constant one
        leaves a block of queries without any block of keys. One that is drawn may.
    """
    h, t = query.shape[1:3]
    s = key.shape[2]
    wanted = (h, -(-t // block), -(-s // block))
    if pattern.shape not in (wanted, (1, *wanted[1:])):
        raise ValueError(
            f"a pattern of shape {pattern.shape} for {h} heads and blocks of {block}, expected "
            f"{wanted}"
        )
    if isinstance(pattern, np.ndarray) and not pattern.any(axis=-1).all():
        head, row = np.argwhere(~pattern.any(axis=-1))[0]
        raise ValueError(
            f"row {row} of head {head} of the pattern names 0 blocks of keys, expected at least 1 "
            "for every block of queries"
        )
    shape = blocks_of(query, key, visible, scale, block)
    shape = shape._replace(rows=block, columns=block, factor=factor, bias=bias)
    keys = None if visible.keys is None else jnp.asarray(visible.keys)
    place = place_of(visible)
    number: Any = pattern.sum(axis=-1)
    if isinstance(pattern, np.ndarray):
        order: Any = np.argsort(~pattern, axis=-1, kind="stable")
        order = order[..., : max(1, number.max(initial=0))]
    else:
        order = jnp.argsort(~pattern, axis=-1, stable=True)
    heads = (h, *pattern.shape[1:2])
    visits = Visits(
        jnp.broadcast_to(jnp.asarray(order, jnp.int32), (*heads, order.shape[-1])),
        jnp.broadcast_to(jnp.asarray(number, jnp.int32), heads),
    )

    def of_head(one: tuple[Array, Array, Array, Visits, Array]) -> tuple[Array, Array]:
        query, key, value, visits, head = one
        return in_blocks(shape, query, key, value, keys, place._replace(head=head), visits)

    def by_head(x: Array) -> Array:
        return jnp.moveaxis(jnp.repeat(x, h // x.shape[1], axis=1), 1, 0)[:, :, None]

    arrays = (by_head(query), by_head(key), by_head(value), visits, jnp.arange(h))
    out, lse = lax.map(of_head, arrays)
    return Part(jnp.moveaxis(out[:, :, 0], 0, 1), jnp.moveaxis(lse[:, :, 0], 0, 1))
