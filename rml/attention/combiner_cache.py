"""A cache for decoders that attend by Combiner's segments: their summaries, and the open segment.

Ren et al., Combiner, arXiv:2107.05768. A segment's summary is final once its last token was read.
So a decoder keeps one key and one value of each finished segment, and the tokens of the open one
alone. Regions of "logsparse" join as a text grows, and the value of the joint one needs all of its
tokens; those of other kinds of `rml.attention.CombinerSettings` need them as well.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Int

from rml.attention.combiner import CombinerSettings, check_settings
from rml.attention.combiner_summaries import Pooling, Tokens, summaries
from rml.errors import UserError
from rml.models.caches import Cache
from rml.models.layers import Dtype
from rml.models.llama import Llama
from rml.ops.attention_parts import Visible, attend_part, merge_parts


class CombinerCache(Cache):
    """Summaries of the segments that a decoder has read, and the tokens of the last one.

    All layers attend by Combiner with its settings, whatever attention the model has. `key` and
    `value` are of the open segment, [layers, b, segment, g, k]. Padding takes places of segments,
    on either side: read texts of different lengths apart.

    Attributes:
      query: [layers, b, segment, h, k], queries of the open segment, which its summary pools.
      region_key: [layers, b, segments, g, k], pooled keys of segments.
      region_value: [layers, b, segments, h, k], expected values of segments.
      settings: How tokens are cut and regions summarised.
    """

    query: Any = None
    region_key: Any = None
    region_value: Any = None
    settings: CombinerSettings = struct.field(pytree_node=False, default=CombinerSettings())

    own: ClassVar[tuple[str, ...]] = ("query", "key", "value", "region_key", "region_value")

    def attend(
        self,
        attention: Callable[..., Any],
        query: Array,
        key: Array,
        value: Array,
        visible: Visible,
        rotate: Callable[..., Array],
    ) -> tuple[Array, Array | None, Any]:
        """Attends to the open segment and to summaries of those before, see `Cache.attend`."""
        del attention
        if visible.window is not None:
            raise ValueError(
                f"window={visible.window} in a model with Combiner's cache, expected none"
            )
        b, t, h, k = query.shape
        g, size = key.shape[2], self.settings.segment
        held, at = self.length % size, self._open(t)
        first, count = at[0], len(at)
        there = self.mask if visible.keys is None else jnp.asarray(visible.keys)
        seen = jnp.pad(there, ((0, 0), (0, (count + 1) * size)))

        def joined(kept: Array, new: Array) -> Array:
            """The open segment and what follows, [b, places, heads, k]."""
            pad = ((0, 0), (0, count * size - size), (0, 0), (0, 0))
            return lax.dynamic_update_slice_in_dim(
                jnp.pad(kept, pad), new.astype(kept.dtype), held, axis=1
            )

        fresh = (rotate(query), rotate(key), value)
        places = tuple(map(joined, (self.query, self.key, self.value), fresh))
        here = lax.dynamic_slice_in_dim(seen, first * size, count * size, axis=1)
        wide = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in places)
        queries, keys, values = (
            x.swapaxes(1, 2).reshape(b, g, -1, count * size, x.shape[-1]) for x in wide
        )
        rows = Tokens(queries, keys, values, here[:, None, None]).rows(size)
        found = summaries(rows, Pooling(self.settings.pool, relu=self.settings.relu), k**-0.5)
        # What is written of the open segment is not seen, and written anew when more is read.
        regions = tuple(
            x.reshape(b, -1, count, x.shape[-1]).swapaxes(1, 2).astype(self.region_key.dtype)
            for x in (found.key, found.value)
        )
        region_key, region_value = (
            kept.at[:, at].set(x, mode="drop")
            for kept, x in zip((self.region_key, self.region_value), regions, strict=True)
        )
        asked, mask = rows.query, rows.here[..., None, :] & jnp.tril(jnp.ones((size, size), bool))
        if t == 1:
            asked, mask = (lax.dynamic_slice_in_dim(x, held, 1, axis=-2) for x in (asked, mask))
        direct = attend_part(asked, rows.key, rows.value, mask, scale=k**-0.5)
        far_key, far_value = (
            x.swapaxes(1, 2).reshape(b, g, -1, 1, x.shape[1], x.shape[-1])
            for x in (region_key, region_value)
        )
        segments = far_key.shape[-2]
        whole = seen[:, : segments * size].reshape(b, segments, size).any(axis=-1)
        earlier = jnp.arange(segments) < at[:, None]
        mask = whole[:, None, None, None, None] & earlier[:, None]
        far = attend_part(asked, far_key, far_value, mask, scale=k**-0.5)
        out = merge_parts(direct, far).out
        out = out.reshape(b, h, -1, out.shape[-1]).swapaxes(1, 2)
        if t > 1:
            out = lax.dynamic_slice_in_dim(out, held, t, axis=1)
        start = jnp.minimum((held + t) // size, count - 1) * size
        kept = (lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in places)
        return out.astype(value.dtype), None, (*kept, *regions)

    def after(self, added: Any, mask: Array, new: Bool[Array, "b t"]) -> "CombinerCache":
        """Returns the cache with further tokens, see `Cache.after`."""
        at = self._open(new.shape[1])
        *places, key, value = added
        regions = (
            kept.at[:, :, at].set(x, mode="drop")
            for kept, x in ((self.region_key, key), (self.region_value, value))
        )
        kept = dict(zip(self.own, (*places, *regions), strict=True))
        found: Any = self.with_kept(mask, new, **kept)
        return found

    def _open(self, t: int) -> Int[Array, " n"]:
        """Numbers of the segments that t new tokens may lie in, the open one first."""
        size = self.settings.segment
        return self.length // size + jnp.arange(-(-(size - 1 + t) // size))


def combiner_cache(
    module: Llama, batch: int, length: int, settings: CombinerSettings, *, dtype: Dtype = None
) -> CombinerCache:
    """Makes an empty cache for a decoder whose layers attend by Combiner with fixed segments.

    Args:
      module: The decoder.
      batch: Number of texts.
      length: Number of tokens that it has room for.
      settings: Those of the model's attention, of kind "fixed".
      dtype: Type of what is kept; None takes the compute dtype. Integers are not taken.

    Raises:
      UserError: The kind is another, regions are left out, or the type is of integers.
    """
    check_settings(settings)
    if settings.kind != "fixed" or not settings.regions:
        raise UserError(
            f"settings of a Combiner's cache are {settings}, expected kind 'fixed' with regions: "
            "only its summaries are final"
        )
    dtype = jnp.dtype(dtype or module.dtype or module.param_dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"dtype of a Combiner's cache is {dtype}, expected a floating one")
    kv_heads, k = module.head_shape()
    segments = -(-length // settings.segment)

    def empty(count: int, heads: int) -> Array:
        return jnp.zeros((module.depth, batch, count, heads, k), dtype)

    return CombinerCache(
        key=empty(settings.segment, kv_heads),
        value=empty(settings.segment, kv_heads),
        mask=jnp.zeros((batch, length), bool),
        read=jnp.zeros(batch, jnp.int32),
        length=jnp.zeros((), jnp.int32),
        query=empty(settings.segment, module.heads),
        region_key=empty(segments, kv_heads),
        region_value=empty(segments, module.heads),
        settings=settings,
    )
