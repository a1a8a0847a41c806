"""Softmax attention a block at a time, in memory that is linear in queries and keys.

Source: FlashAttention (Dao et al., 2022), algorithms 1 and 4, in plain JAX.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from rml.ops.attention_blocks import Blocks, Place, blocks_of, place_of
from rml.ops.attention_parts import OfPlaces, Part, Visible, finite_top

BLOCK = 256
"""Queries and keys of one block: a head's logits of it take 256 kB, which a core's cache holds."""


def attend_in_blocks(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    scale: float | None = None,
    block: int = BLOCK,
    factor: OfPlaces | None = None,
    bias: OfPlaces | None = None,
) -> Part:
    """Attends to all visible keys a block at a time, in memory linear in queries and keys.

    Blocks that no query of a block sees (after it, or outside the window) are not computed. The
    backward pass makes the weights anew from the log-sum-exp. It has reverse-mode derivatives of
    first order only; `attend_part` has all.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys; g divides h.
      value: Values.
      visible: Which keys a query may see.
      scale: Factor of the logits; k^-1/2 by default.
      block: Queries and keys of one block; fewer where there are fewer. The last may be short.
      factor: What logits are multiplied by, of places; computed a block at a time.
      bias: What is added to them then, likewise.

    Returns:
      Output [b, h, t, v] and log-sum-exp [b, h, t], float32 or wider.

    Raises:
      ValueError: If the block is empty or the heads of keys do not divide those of queries.
    """
    blocks = blocks_of(query, key, visible, scale, block)._replace(factor=factor, bias=bias)
    keys = None if visible.keys is None else jnp.asarray(visible.keys)
    return Part(*in_blocks(blocks, query, key, value, keys, place_of(visible), None))


def zero_of(*arrays: ArrayLike | None) -> Array:
    """A zero that varies over the mesh axes over which any of the arrays does.

    Inside `jax.shard_map` what a loop carries must vary from the first step; added to a constant,
    this makes it so.
    """
    zeros = [jnp.zeros_like(x, jnp.float32, shape=()) for x in arrays if x is not None]
    return jnp.sum(jnp.stack(zeros))


def _padded(x: Array, block: int, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths) if widths[axis][1] else x


def _take(x: Array, index: Array, size: int, axis: int) -> Array:
    return lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _seen(shape: Blocks, keys: Array, i: Array, j: Array, place: Place) -> Array:
    """Which keys of block j the queries of block i see, [b, 1, 1, rows, columns]."""
    rows, columns = shape.places(place, i, j)
    pairs = Visible(None, shape.causal, place.window, shape.sinks).pairs(rows, columns)
    return (pairs & _take(keys, j, shape.columns, 1)[:, None])[:, None, None]


def _cut(shape: Blocks, query: Array, key: Array, value: Array, keys: Array | None) -> tuple:
    """Queries by head of keys, and all filled up to whole blocks."""
    b, h, t, k = query.shape
    g, s = key.shape[1:3]
    query = _padded(query.reshape(b, g, h // g, t, k), shape.rows, 3)
    key, value = _padded(key, shape.columns, 2), _padded(value, shape.columns, 2)
    return (
        query,
        key,
        value,
        _padded(jnp.ones((1, s), bool) if keys is None else keys, shape.columns, 1),
    )


class Visits(NamedTuple):
    """Which blocks of keys each block of queries visits, instead of all that are visible.

    Attributes:
      blocks: [blocks of queries, most visits], numbers of blocks of keys.
      number: [blocks of queries], how many of them count.
    """

    blocks: Int[Array, "q n"]
    number: Int[Array, " q"]


def _visit(
    shape: Blocks, visits: Visits | None, i: Array, place: Place, step: Callable, carry: Any
) -> Any:
    """Takes the step of every block of keys that block i of the queries sees."""
    if visits is not None:
        return lax.fori_loop(0, visits.number[i], lambda n, c: step(visits.blocks[i, n], c), carry)
    for low, high in shape.ranges(place, i):
        carry = lax.fori_loop(low, high, step, carry)
    return carry


def blocks_forward(
    shape: Blocks,
    query: Array,
    key: Array,
    value: Array,
    keys: Array | None,
    place: Place,
    visits: Visits | None = None,
) -> tuple[Array, Array]:
    """Output and log-sum-exp, see `attend_in_blocks`; without a derivative."""
    heads = query.shape[:3]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query, key, value, keys = _cut(shape, query, key, value, keys)
    b, g, r, padded, _ = query.shape
    zero = zero_of(query, key, value, keys, *place)

    def of_queries(i: Array) -> tuple[Array, Array]:
        q = _take(query, i, shape.rows, 3)

        def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, total, top = carry
            logits, _ = shape.logits(q, _take(key, j, shape.columns, 2)[:, :, None], place, i, j)
            logits = jnp.where(_seen(shape, keys, i, j, place), logits, -jnp.inf)
            new = jnp.maximum(top, logits.max(axis=-1))
            shift = finite_top(new)
            raised = jnp.exp(logits - shift[..., None])
            old = jnp.exp(top - shift)
            v = _take(value, j, shape.columns, 2)[:, :, None]
            seen = jnp.einsum(
                "...ts,...sv->...tv", raised.astype(v.dtype), v, preferred_element_type=wide
            )
            return out * old[..., None] + seen, total * old + raised.sum(axis=-1), new

        none = jnp.zeros((b, g, r, shape.rows), wide) + zero
        carry = (jnp.zeros((*none.shape, value.shape[-1]), wide) + zero, none, none - jnp.inf)
        out, total, top = _visit(shape, visits, i, place, step, carry)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        lse = jnp.where(some, jnp.log(total) + finite_top(top), -jnp.inf)
        return out / total[..., None], lse

    out, lse = lax.map(of_queries, jnp.arange(padded // shape.rows))
    # [blocks, b, g, r, rows, ...] to [b, g, r, t, ...]
    out = jnp.moveaxis(out, 0, 3).reshape(b, g * r, padded, -1)
    lse = jnp.moveaxis(lse, 0, 3).reshape(b, g * r, padded)
    return out[:, :, : heads[2]], lse[:, :, : heads[2]]


def blocks_backward(
    shape: Blocks,
    query: Array,
    key: Array,
    value: Array,
    keys: Array | None,
    place: Place,
    visits: Visits | None,
    *,
    part: Part,
    cotangent: Part,
) -> tuple[Array, Array, Array]:
    """Gradients of queries, keys and values, float32 or wider.

    Args:
      shape: How the attention is cut.
      query: As in `attend_in_blocks`.
      key: Keys, all of the part's or some of them.
      value: Values.
      keys: Which keys are there; None where all are.
      place: Place of the first query among the keys, and the window.
      visits: Which blocks of keys are visited; None for all that are visible.
      part: The whole part. Where the keys are some of its keys, the gradients are those of these.
      cotangent: Cotangents of its output and log-sum-exp.
    """
    queries, columns = query.shape, key.shape[2]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    some = jnp.isfinite(part.lse)
    lse = jnp.where(some, part.lse, 0.0)
    # What every logit's gradient loses: the sum over its row, less the log-sum-exp's own cotangent.
    lost = (cotangent.out * part.out).sum(axis=-1) - jnp.where(some, cotangent.lse, 0.0)
    query, key, value, keys = _cut(shape, query, key, value, keys)
    b, g, r = query.shape[:3]
    d_out, lse, lost = (
        _padded(x.reshape(b, g, r, *x.shape[2:]), shape.rows, 3)
        for x in (cotangent.out.astype(value.dtype), lse, lost)
    )

    def of_queries(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        q, do, row_lse, row_lost = (_take(x, i, shape.rows, 3) for x in (query, d_out, lse, lost))

        def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq, dk, dv = carry
            k = _take(key, j, shape.columns, 2)[:, :, None]
            v = _take(value, j, shape.columns, 2)[:, :, None]
            seen = _seen(shape, keys, i, j, place)
            logits, slope = shape.logits(q, k, place, i, j)
            p = jnp.where(seen, jnp.exp(logits - row_lse[..., None]), 0.0)
            dp = jnp.einsum("...tv,...sv->...ts", do, v, preferred_element_type=wide)
            ds = (p * (dp - row_lost[..., None]) * slope).astype(q.dtype)
            dq += jnp.einsum("...ts,...sk->...tk", ds, k, preferred_element_type=wide)

            def add(total: Array, part: Array) -> Array:
                at = j * shape.columns
                old = lax.dynamic_slice_in_dim(total, at, shape.columns, 2)
                return lax.dynamic_update_slice_in_dim(total, old + part, at, 2)

            product = functools.partial(jnp.einsum, preferred_element_type=wide)
            dk = add(dk, product("bgrts,bgrtk->bgsk", ds, q))
            dv = add(dv, product("bgrts,bgrtv->bgsv", p.astype(do.dtype), do))
            return dq, dk, dv

        rows = (jnp.zeros(q.shape, wide) + zero, *carry)
        rows = _visit(shape, visits, i, place, step, rows)
        return rows[1:], rows[0]

    zero = zero_of(query, key, value, keys, *place, d_out, lost)
    zeros = (jnp.zeros(key.shape, wide) + zero, jnp.zeros(value.shape, wide) + zero)
    (dk, dv), dq = lax.scan(of_queries, zeros, jnp.arange(query.shape[3] // shape.rows))
    dq = jnp.moveaxis(dq, 0, 3).reshape(b, g * r, -1, queries[-1])[:, :, : queries[2]]
    return dq, dk[:, :, :columns], dv[:, :, :columns]


def _in_blocks_forward(shape: Blocks, *arguments: Any) -> tuple[tuple[Array, Array], tuple]:
    found = blocks_forward(shape, *arguments)
    return found, (arguments, found)


def _in_blocks_backward(shape: Blocks, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    arguments, found = kept
    gradients = blocks_backward(shape, *arguments, part=Part(*found), cotangent=Part(*cotangents))
    pairs = zip(gradients, arguments[:3], strict=True)
    return *(gradient.astype(x.dtype) for gradient, x in pairs), None, None, None


in_blocks = jax.custom_vjp(blocks_forward, nondiff_argnums=(0,))
"""`blocks_forward` with its derivative."""
in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)
