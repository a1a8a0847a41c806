"""Softmax attention to the blocks of keys that a pattern names."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from rml.ops.attention_blocks import Blocks, blocks_of, place_of
from rml.ops.attention_parts import OfPlaces, Part, Visible, check_attention
from rml.ops.blocked_attention import BLOCK, Visits, in_blocks


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

    Work and time follow the pattern. Where blocks are so small that products of them are slow,
    those that lie together or are visited by the same queries are joined, and what the pattern
    hides of a joined block is computed and left out. Of a pattern that is drawn within the program
    only blocks that it names are computed. Derivatives are those of `attend_in_blocks`.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys; g divides h.
      value: Values.
      pattern: Mask of the blocks of keys that each block of queries visits, one for all heads or
        one for each; a constant, or drawn within the program.
      visible: Keys of a visited block that a query may see.
      block: Queries and keys of one block. The last may be short.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      factor: Factor of the logits, a function of places, as in `attend_in_blocks`.
      bias: Term that is added to them then, likewise.

    Returns:
      Output [b, h, t, v] and log-sum-exp [b, h, t], float32 or wider; 0 and -inf where a query
      sees nothing.

    Raises:
      ValueError: If an integer window is less than 1, a shape or the scale is not as described,
        the factor or the bias does not fit the heads or what is visible, the pattern does not fit
        the heads or the number of blocks, or a constant one leaves a block of queries without any
        block of keys. One that is drawn may.
    """
    check_attention(query, key, value, visible, scale)
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
    groups = key.shape[1]
    keys = None if visible.keys is None else jnp.asarray(visible.keys)
    shape = blocks_of(query, key, value, visible, scale, block, factor=factor, bias=bias)
    place = place_of(visible)
    if len(pattern) == 1:
        shape, visits = block_visits(pattern[0], shape, block)
        return Part(*in_blocks(shape, query, key, value, keys, place, visits))
    if isinstance(pattern, np.ndarray):
        by_group = pattern.reshape(groups, -1, *wanted[1:])
        if (by_group == by_group[:, :1]).all():
            pattern = by_group[:, 0]  # heads that share keys visit the same blocks of them
    shape, visits = block_visits(pattern, shape, block)

    def of_head(one: tuple[Array, Array, Array, Visits, Array]) -> tuple[Array, Array]:
        query, key, value, visits, head = one
        return in_blocks(shape, query, key, value, keys, place._replace(head=head), visits)

    def split(x: Array) -> Array:
        """[b, h, ...] or [b, g, ...] as [patterns, b, heads of one pattern, ...]."""
        if x.shape[1] < len(pattern):
            x = jnp.repeat(x, h // groups, axis=1)
        return jnp.moveaxis(x.reshape(x.shape[0], len(pattern), -1, *x.shape[2:]), 1, 0)

    first = jnp.arange(0, h, h // len(pattern))
    arrays = (split(query), split(key), split(value), visits, first)
    out, lse = lax.map(of_head, arrays)
    b = query.shape[0]
    out, lse = (jnp.moveaxis(x, 0, 1) for x in (out, lse))
    return Part(out.reshape(b, h, *out.shape[3:]), lse.reshape(b, h, t))


def block_visits(pattern: Any, shape: Blocks, block: int) -> tuple[Blocks, Visits]:
    """Joins blocks to steps: a product of small blocks is slow.

    Blocks of keys that are visited, wherever they lie, are joined, and of a constant pattern blocks
    of queries that follow each other too, where they visit nearly the same ones.

    Args:
      pattern: [*heads, blocks of queries, blocks of keys].
      shape: Cut of the attention without a pattern.
      block: Queries and keys of one block.

    Returns:
      How it is cut, and what each head's blocks of queries visit.
    """
    constant = isinstance(pattern, np.ndarray)
    most = max(1, BLOCK // block)
    rows, columns = 1, min(most, pattern.shape[-1])
    if constant:
        sizes = [2**i for i in range(most.bit_length())]
        tiles = [(rows, columns) for rows in (*sizes, 2 * most) for columns in sizes]
        rows, columns = min(tiles, key=lambda tile: _cost(pattern, tile[0], tile[1], block))
    xp: Any = np if constant else jnp
    parts = _by_rows(xp, pattern, rows)
    union = parts.any(axis=-2)
    number = union.sum(axis=-1)
    order = xp.argsort(~union, axis=-1, stable=True)
    length = max(1, int(number.max(initial=0))) if constant else order.shape[-1]
    length += -length % columns
    order = xp.concatenate([order, xp.zeros((*order.shape[:-1], columns), order.dtype)], -1)
    counts = xp.arange(length) < number[..., None]
    # What fills up the last step is visited anyway, and not seen again.
    pieces = xp.where(counts, order[..., :length], order[..., :1])
    seen = xp.take_along_axis(parts, pieces[..., None, :], axis=-1) & counts[..., None, :]

    def steps(x: Any) -> Array:
        return jnp.asarray(x.reshape(*x.shape[:-1], -1, columns))

    visits = Visits(
        steps(pieces).astype(jnp.int32), steps(seen),
        jnp.asarray(-(-number // columns)).astype(jnp.int32),
    )  # fmt: skip
    return shape._replace(rows=rows * block, columns=columns * block), visits


def _by_rows(xp: Any, pattern: Any, rows: int) -> Any:
    """[*heads, q, n] as [*heads, q / rows, rows, n], filled up with blocks that visit nothing."""
    *heads, q, n = pattern.shape
    more = xp.zeros((*heads, -q % rows, n), bool)
    return xp.concatenate([pattern, more], -2).reshape(*heads, -1, rows, n)


def _cost(pattern: np.ndarray, rows: int, columns: int, block: int) -> float:
    """Estimates what steps of so many blocks cost, from times of products: small ones are slow.

    Heads that share keys are more rows of a product, and rows are what threads divide.
    """
    number = _by_rows(np, pattern, rows).any(axis=-2).sum(axis=-1)
    steps = -(-number // columns)
    return float(steps.sum()) * (rows * block + 128) * (columns * block + 32)
