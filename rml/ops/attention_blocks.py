"""How attention is cut into blocks: their sizes, their places, their logits, which are visible."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from rml.ops.attention_parts import OfPlaces, Visible, check_attention, scaled_logits


class Place(NamedTuple):
    """Where the first query lies among the keys, and how far each sees: integers or scalars.

    Of some heads of several it has the number of the first, by which functions of places are read.
    """

    start: Any
    window: Any = None
    head: Any = None


class Blocks(NamedTuple):
    """What is static of attention in blocks: sizes, scale, causality, what places do to logits.

    `heads` is the number of all heads of queries, those of other pieces of the attention included.
    """

    rows: int
    columns: int
    keys: int
    heads: int
    scale: float
    causal: bool
    sinks: int
    factor: OfPlaces | None = None
    bias: OfPlaces | None = None

    def rows_of(self, place: Place, i: Array) -> Array:
        """Returns the places of the queries of block i."""
        return jnp.asarray(place.start + i * self.rows) + jnp.arange(self.rows)

    def logits(
        self, query: Array, key: Array, place: Place, rows: Array, columns: Array
    ) -> tuple[Array, Array | float]:
        """Computes logits of some queries and keys, and their derivative to the products.

        Args:
          query: [b, g, r x t, k], t queries of each of the r heads that share a head of keys.
          key: [b, g, s, k].
          place: Place of the first query, and number of the first head.
          rows: [t], places of the queries.
          columns: [s], places of the keys.

        Returns:
          Both [b, g, r x t, s], up to broadcasting.

        Raises:
          ValueError: If the factor or the bias does not broadcast to [h, t, s].
        """
        logits = scaled_logits(query, key, self.scale)
        slope: Array | float = self.scale
        groups, heads = query.shape[1], query.shape[2] // len(rows)

        def of_heads(law: OfPlaces) -> Array:
            values = jnp.asarray(law(rows, columns))
            shape = (self.heads, len(rows), len(columns))
            pairs = zip(values.shape, shape, strict=False)
            if values.ndim != 3 or any(size not in (1, whole) for size, whole in pairs):
                raise ValueError(
                    f"a factor or bias has shape {values.shape}, expected that of heads, queries "
                    f"and keys, {shape}, or 1 in the place of any"
                )
            values = jnp.broadcast_to(values, (len(values), *shape[1:]))
            if len(values) == 1:
                values = jnp.tile(values, (1, heads, 1))
            elif place.head is not None:
                values = lax.dynamic_slice_in_dim(values, place.head, groups * heads)
            return values.reshape(-1, *logits.shape[2:]).astype(logits.dtype)

        if self.factor is not None:
            factor = of_heads(self.factor)
            logits, slope = logits * factor, slope * factor
        return logits if self.bias is None else logits + of_heads(self.bias), slope

    def ranges(self, place: Place, i: Array) -> tuple[tuple[Array, Array], ...]:
        """Finds the ranges of blocks of keys that block i of the queries may see.

        The first holds the window, and sinks behind it where attention is not causal. The second
        holds sinks before the window; its range is empty where they are in the first.
        """
        blocks = -(-self.keys // self.columns)
        first = jnp.asarray(place.start + i * self.rows)
        last = first + self.rows - 1
        sinks = jnp.int32(-(-min(self.sinks, self.keys) // self.columns))
        low, high = jnp.int32(0), jnp.int32(blocks)
        if self.causal:
            high = jnp.clip(last // self.columns + 1, 0, blocks)
        elif place.window is not None:
            high = jnp.clip((last + place.window - 1) // self.columns + 1, sinks, blocks)
        if place.window is not None:
            low = jnp.clip((first - place.window + 1) // self.columns, 0, high)
        return (low, high), (jnp.int32(0), jnp.minimum(low, sinks))

    def seen_whole(self, place: Place, i: Array) -> Array:
        """Finds the end of key blocks that all queries of block i see: no window, none missing."""
        whole = jnp.int32(self.keys // self.columns)
        if not self.causal:
            return whole
        return jnp.clip(jnp.asarray(place.start + i * self.rows) // self.columns, 0, whole)


def blocks_of(
    query: Array, key: Array, value: Array, visible: Visible, scale: float | None, block: int, *,
    factor: OfPlaces | None = None, bias: OfPlaces | None = None,
) -> Blocks:  # fmt: skip
    """Chooses how attention of these queries to these keys is cut.

    Raises:
      ValueError: If the block or an integer window is less than 1, `check_attention` refuses a
        shape or the scale, or `Visible.require_distances` refuses the factor or the bias.
    """
    check_attention(query, key, value, visible, scale)
    visible.require_distances(factor, bias)
    (h, t, k), s = query.shape[1:], key.shape[2]
    if block < 1:
        raise ValueError(f"block={block}, expected at least 1")
    if isinstance(visible.window, int | np.integer) and visible.window < 1:
        raise ValueError(f"window={visible.window}, expected at least 1")
    scale = k**-0.5 if scale is None else scale
    # More queries make faster products; of a short causal text they would see too few of the keys.
    rows = 2 * block if t >= 8 * block else min(block, t)
    return Blocks(rows, min(block, s), s, h, scale, visible.causal, visible.sinks, factor, bias)


def place_of(visible: Visible) -> Place:
    """Returns the place that a visibility gives to the queries."""
    window = visible.window
    return Place(
        jnp.asarray(visible.start, jnp.int32),
        None if window is None else jnp.asarray(window, jnp.int32),
    )
