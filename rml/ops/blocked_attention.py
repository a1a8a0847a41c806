"""Softmax attention a block at a time, in memory that is linear in queries and keys.

Source: FlashAttention (Dao et al., 2022), algorithms 1 and 4, in plain JAX.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rml.ops.attention_blocks import Blocks, Place, blocks_of, place_of
from rml.ops.attention_parts import OfPlaces, Part, Visible, finite_top

BLOCK = 256
"""Keys of one block: a head's logits of it and twice as many queries fit into a core's cache."""


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
    first order only; `attend_part` has all. Outside `jax.jit` every call compiles its loop anew.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys; g divides h.
      value: Values.
      visible: Keys that a query may see.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      block: Keys of one block, and as many queries, or twice as many of a long text; fewer where
        there are fewer. The last may be short.
      factor: Factor of the logits, a function of places; computed a block at a time. Neither it nor
        a bias is taken where `Visible.require_distances` refuses.
      bias: Term that is added to them then, likewise.

    Returns:
      Output [b, h, t, v] and log-sum-exp [b, h, t], float32 or wider.

    Raises:
      ValueError: If the block or an integer window is less than 1, a shape or the scale is not as
        described, or the factor or the bias does not fit the heads or what is visible.
    """
    blocks = blocks_of(query, key, value, visible, scale, block, factor=factor, bias=bias)
    keys = None if visible.keys is None else jnp.asarray(visible.keys)
    return Part(*in_blocks(blocks, query, key, value, keys, place_of(visible), None))


def zero_of(*arrays: ArrayLike | None) -> Array:
    """Makes a zero that varies over the mesh axes over which any of the arrays does.

    Inside `jax.shard_map` what a loop carries must vary from the first step; added to a constant,
    this makes it so.
    """
    zeros = [jnp.zeros_like(x, jnp.float32, shape=()) for x in arrays if x is not None]
    return jnp.sum(jnp.stack(zeros))


def _padded(x: Array, block: int, axis: int, value: float = 0.0) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x


class Visits(NamedTuple):
    """Which pieces of the keys each block of queries visits, instead of all that are visible.

    Attributes:
      pieces: [blocks of queries, most steps, pieces of a step], numbers of pieces of keys.
      seen: [blocks of queries, parts, most steps, pieces of a step], which equal part of the
        queries' block sees which piece.
      number: [blocks of queries], how many of the steps count.
    """

    pieces: Int[Array, "q n c"]
    seen: Bool[Array, "q p n c"]
    number: Int[Array, " q"]


def _by_block(x: Array, rows: int, groups: int, value: float = 0.0) -> Array:
    """[b, h, t, ...] as [blocks, b, g, h / g x rows, ...]: heads that share keys are more rows.

    `value` fills the last block up.
    """
    x = _padded(x, rows, 2, value)
    b, h, t = x.shape[:3]
    x = x.reshape(b, groups, h // groups, t // rows, rows, *x.shape[3:])
    return jnp.moveaxis(x, 3, 0).reshape(t // rows, b, groups, -1, *x.shape[5:])


def _by_head(x: Array, rows: int, shape: Sequence[int]) -> Array:
    """The inverse: [b, h, t, ...], of which `shape` has the first three."""
    blocks, b, groups = x.shape[:3]
    x = jnp.moveaxis(x.reshape(blocks, b, groups, -1, rows, *x.shape[4:]), 0, 3)
    return x.reshape(b, shape[1], blocks * rows, *x.shape[5:])[:, :, : shape[2]]


class _Step(NamedTuple):
    """Some queries and keys: where the keys' pieces start, places of both, who sees whom.

    Every query sees all of the step's keys where `seen` is None.
    """

    starts: Array
    rows: Array
    columns: Array
    seen: Array | None = None

    @property
    def piece(self) -> int:
        return len(self.columns) // len(self.starts)

    def take(self, x: Array, axis: int = 2) -> Array:
        """The step's keys of all."""
        parts = [lax.dynamic_slice_in_dim(x, start, self.piece, axis) for start in self.starts]
        return jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]

    def hide(self, x: Array, value: float) -> Array:
        """What belongs to pairs [b, g, t, s], with a value where the query does not see the key."""
        return x if self.seen is None else jnp.where(self.seen, x, value)

    def add(self, total: Array, part: Array) -> Array:
        """Adds what belongs to the step's keys."""
        for start, own in zip(self.starts, jnp.split(part, len(self.starts), 2), strict=True):
            old = lax.dynamic_slice_in_dim(total, start, self.piece, 2)
            total = lax.dynamic_update_slice_in_dim(total, old + own, start, 2)
        return total


def _step(
    shape: Blocks, heads: int, keys: Array, place: Place, visits: Visits | None, i: Array, n: Array,
    *, whole: bool = False,
) -> _Step:  # fmt: skip
    """Prepares step n of block i of the queries, of `heads` heads that share keys.

    With `whole` all of its queries see all of its keys, and nobody asks.
    """
    pieces = n[None] if visits is None else visits.pieces[i, n]
    piece = shape.columns // len(pieces)
    starts = pieces * piece
    columns = (starts[:, None] + jnp.arange(piece)).reshape(-1)
    rows = shape.rows_of(place, i)
    if whole:
        return _Step(starts, rows, columns)
    pairs = Visible(None, shape.causal, place.window, shape.sinks).pairs(
        jnp.tile(rows, heads), columns
    )
    if visits is not None:
        own = visits.seen[i, :, n]
        parts = len(own)
        wide = (heads, parts, shape.rows // parts, len(pieces), piece)
        pairs &= jnp.broadcast_to(own[None, :, None, :, None], wide).reshape(pairs.shape)
    found = _Step(starts, rows, columns)
    return found._replace(seen=(pairs & found.take(keys, 1)[:, None])[:, None])


def _visit(
    shape: Blocks, visits: Visits | None, i: Array, place: Place, step: Callable, carry: Any, *,
    every: bool, last: Callable | None = None,
) -> Any:  # fmt: skip
    """Takes every step of block i of the queries.

    Args:
      shape: Cut of the attention.
      visits: Pieces of the keys that are visited; None for all that are visible.
      i: The block.
      place: Its place.
      step: A step, called with its number, what is carried, and whether all is seen.
      carry: Value that the first step is given.
      every: Whether all keys are there and no window hides any.
      last: Steps, between two numbers, whose keys the first half of the queries does not see.
    """
    some = functools.partial(step, whole=False)
    if visits is not None:
        return lax.fori_loop(0, visits.number[i], some, carry)
    (low, high), sinks = shape.ranges(place, i)
    if every:
        inner = jnp.clip(shape.seen_whole(place, i), low, high)
        carry = lax.fori_loop(low, inner, functools.partial(step, whole=True), carry)
        low = inner
    if last is None:
        carry = lax.fori_loop(low, high, some, carry)
    else:
        half = shape._replace(rows=shape.rows // 2)
        middle = jnp.clip(half.ranges(place, 2 * i)[0][1], low, high)
        carry = last(middle, high, lax.fori_loop(low, middle, some, carry))
    return carry if place.window is None else lax.fori_loop(*sinks, some, carry)


def _second_half(x: Array, rows: int) -> Array:
    """Of [b, g, r x rows, ...] the second half of the rows of each of the r heads."""
    b, g, _, *rest = x.shape
    return x.reshape(b, g, -1, 2, rows // 2, *rest)[:, :, :, 1].reshape(b, g, -1, *rest)


def _with_second_half(x: Array, half: Array, rows: int) -> Array:
    """The array with another second half."""
    b, g, _, *rest = x.shape
    cut = x.reshape(b, g, -1, 2, rows // 2, *rest)
    return cut.at[:, :, :, 1].set(half.reshape(b, g, -1, rows // 2, *rest)).reshape(x.shape)


def _keys(
    shape: Blocks, key: Array, value: Array, keys: Array | None, visits: Visits | None
) -> tuple[Array, Array, Array]:
    """Keys, values and which keys are there, filled up to whole pieces."""
    b, _, s, _ = key.shape
    piece = shape.columns // (1 if visits is None else visits.pieces.shape[2])
    there = jnp.ones((b, s), bool) if keys is None else keys
    return _padded(key, piece, 2), _padded(value, piece, 2), _padded(there, piece, 1)


def blocks_forward(
    shape: Blocks,
    query: Array,
    key: Array,
    value: Array,
    keys: Array | None,
    place: Place,
    visits: Visits | None = None,
) -> tuple[Array, Array]:
    """Computes output and log-sum-exp, see `attend_in_blocks`; without a derivative."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    heads, groups = query.shape[1], key.shape[1]
    every = keys is None and place.window is None
    key, value, keys = _keys(shape, key, value, keys, visits)
    queries = _by_block(query, shape.rows, groups)
    zero = zero_of(query, key, value, keys, *place)

    def of_queries(block: tuple[Array, Array]) -> tuple[Array, Array]:
        i, q = block

        def step(
            n: Array, carry: tuple[Array, Array, Array], *, whole: bool, shape: Blocks = shape,
            i: Array = i, q: Array = q,
        ) -> tuple[Array, Array, Array]:  # fmt: skip
            out, total, top = carry
            at = _step(shape, heads // groups, keys, place, visits, i, n, whole=whole)
            logits, _ = shape.logits(q, at.take(key), place, at.rows, at.columns)
            logits = at.hide(logits, -jnp.inf)
            new = jnp.maximum(top, logits.max(axis=-1))
            shift = finite_top(new)
            raised = jnp.exp(logits - shift[..., None])
            old = jnp.exp(top - shift)
            v = at.take(value)
            seen = jnp.einsum(
                "...ts,...sv->...tv", raised.astype(v.dtype), v, preferred_element_type=wide
            )
            return out * old[..., None] + seen, total * old + raised.sum(axis=-1), new

        def last(low: Array, high: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            half = functools.partial(
                step, whole=False, shape=shape._replace(rows=shape.rows // 2), i=2 * i + 1,
                q=_second_half(q, shape.rows),
            )  # fmt: skip
            own = tuple(_second_half(x, shape.rows) for x in carry)
            own = lax.fori_loop(low, high, half, own)
            pairs = zip(carry, own, strict=True)
            return tuple(_with_second_half(x, y, shape.rows) for x, y in pairs)

        halved = shape.causal and shape.rows > shape.columns and shape.rows % 2 == 0
        none = jnp.zeros(q.shape[:3], wide) + zero
        carry = (jnp.zeros((*none.shape, value.shape[-1]), wide) + zero, none, none - jnp.inf)
        out, total, top = _visit(
            shape, visits, i, place, step, carry, every=every, last=last if halved else None
        )
        some = total > 0
        total = jnp.where(some, total, 1.0)
        lse = jnp.where(some, jnp.log(total) + finite_top(top), -jnp.inf)
        return out / total[..., None], lse

    out, lse = lax.map(of_queries, (jnp.arange(len(queries)), queries))
    return _by_head(out, shape.rows, query.shape), _by_head(lse, shape.rows, query.shape)


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
    """Computes gradients of queries, keys and values, float32 or wider.

    Args:
      shape: Cut of the attention.
      query: Queries, as in `attend_in_blocks`.
      key: Keys, all of the part's or some of them.
      value: Values.
      keys: Mask of the keys that are there; None where all are.
      place: Place of the first query among the keys, and the window.
      visits: Pieces of the keys that are visited; None for all that are visible.
      part: The whole part. Where the keys are some of its keys, the gradients are those of these.
      cotangent: Cotangents of its output and log-sum-exp.
    """
    if visits is None:
        # Three arrays of a block's size, not one, are to stay in the cache.
        shape = shape._replace(rows=min(shape.rows, shape.columns))
    heads, (groups, columns) = query.shape[1], key.shape[1:3]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    some = jnp.isfinite(part.lse)
    lse = jnp.where(some, part.lse, 0.0)
    every = keys is None and place.window is None
    # What every logit's gradient loses: the sum over its row, less the log-sum-exp's own cotangent.
    lost = (cotangent.out * part.out).sum(axis=-1) - jnp.where(some, cotangent.lse, 0.0)
    key, value, keys = _keys(shape, key, value, keys, visits)
    d_out = cotangent.out.astype(value.dtype)
    blocks = [_by_block(x, shape.rows, groups) for x in (query, d_out, lost)]
    # Rows that fill up a block have weights of zero, however large the bias of their places is.
    blocks.append(_by_block(lse, shape.rows, groups, jnp.inf))

    def of_queries(carry: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], Array]:
        i, (q, do, row_lost, row_lse) = block

        def step(
            n: Array, carry: tuple[Array, Array, Array], *, whole: bool
        ) -> tuple[Array, Array, Array]:
            dq, dk, dv = carry
            at = _step(shape, heads // groups, keys, place, visits, i, n, whole=whole)
            k, v = at.take(key), at.take(value)
            logits, slope = shape.logits(q, k, place, at.rows, at.columns)
            p = at.hide(jnp.exp(logits - row_lse[..., None]), 0.0)
            product = functools.partial(jnp.einsum, preferred_element_type=wide)
            dp = product("...tv,...sv->...ts", do, v)
            ds = (p * (dp - row_lost[..., None]) * slope).astype(q.dtype)
            dq += product("...ts,...sk->...tk", ds, k)
            dk = at.add(dk, product("...ts,...tk->...sk", ds, q))
            dv = at.add(dv, product("...ts,...tv->...sv", p.astype(do.dtype), do))
            return dq, dk, dv

        rows = (jnp.zeros(q.shape, wide) + zero, *carry)
        rows = _visit(shape, visits, i, place, step, rows, every=every)
        return rows[1:], rows[0]

    zero = zero_of(query, key, value, keys, *place, d_out, lost)
    zeros = (jnp.zeros(key.shape, wide) + zero, jnp.zeros(value.shape, wide) + zero)
    (dk, dv), dq = lax.scan(of_queries, zeros, (jnp.arange(len(blocks[0])), blocks))
    return _by_head(dq, shape.rows, query.shape), dk[:, :, :columns], dv[:, :, :columns]


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
