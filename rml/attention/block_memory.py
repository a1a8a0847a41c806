"""A decoder's memory of blocks: it keeps the whole text and attends to little of it.

Every call attends to the first tokens, to the nearest ones, and to those blocks of the past that a
probe of the call's queries looks up, see `rml.attention.actqkv`. All three are one softmax. Only
what is near has true rotary distances; tokens farther than the window all lie at its distance, so
that no distance is longer than those of training.

Source: InfLLM (Xiao et al., 2024, arXiv:2402.04617), section 3, for the memory and its distances.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from rml.attention.actqkv import (
    METRICS,
    Found,
    Moments,
    Weighting,
    block_representatives,
    layer_budgets,
    no_moments,
    probe_query,
    retrieve,
    update_moments,
    weighting_of,
)
from rml.errors import unknown
from rml.models.attention import attend
from rml.models.caches import Cache
from rml.models.layers import Dtype
from rml.models.llama import Llama
from rml.ops.attention_parts import Visible, scaled_logits


class MemorySettings(NamedTuple):
    """What a memory attends to.

    Attributes:
      block: Tokens of a block.
      blocks: Number of blocks that a layer looks up, on average over the layers where they differ.
      sinks: First tokens, which are always attended to.
      window: Nearest tokens, which are always attended to.
      top: Keys of a block that make its representative.
      weighting: How a call's queries are weighed, see `rml.attention.actqkv.probe_query`.
      metric: How like a block and a probe are, a name in `rml.attention.actqkv.METRICS`.
      per_head: Whether each head of keys looks up blocks of its own, rather than all together.
      dynamic: Whether layers get blocks in proportion to their information.
      least: Blocks that a layer then has at least; at most it has 2 `blocks` - `least`.
      temperature: Of the scores that give the information.
      clamped: Whether tokens beyond the window are attended to at its distance; False keeps the
        distances of the text.
    """

    block: int = 32
    blocks: int = 46
    sinks: int = 64
    window: int = 512
    top: int = 4
    weighting: str | Weighting = "activation"
    metric: str = "dot"
    per_head: bool = False
    dynamic: bool = False
    least: int = 32
    temperature: float = 1.0
    clamped: bool = True

    @property
    def most(self) -> int:
        """Blocks that a layer looks up at most."""
        return 2 * self.blocks - self.least if self.dynamic else self.blocks

    @property
    def attended(self) -> int:
        """Tokens that a query attends to, those left over of a block not counted."""
        return self.sinks + self.window + self.blocks * self.block


class Lookup(NamedTuple):
    """What each layer of a memory has beside keys and values; p is 1, or the heads of keys.

    Attributes:
      received: [b, h, slots], attention that each token received while it was near.
      representatives: [b, blocks, h, k].
      moments: Of the queries, [b, p, c].
      information: [b], mean over calls.
      budget: [b], blocks that the next call looks up.
      blocks: [b, p, most], those that the last call looked up, -1 where none.
    """

    received: Any
    representatives: Any
    moments: Moments
    information: Any
    budget: Any
    blocks: Any


class BlockMemory(Cache):
    """Keys and values of a whole text, not rotated, of which each call attends to some.

    Slot i holds token i. Tokens that have left the window of a call's first query form blocks of
    equal size; the rest of a block stays near until the block is whole. A call looks up blocks
    once, for all of its tokens: long texts are read in parts, see `rml.models.read_in_chunks`.

    Attributes:
      lookup: Of each layer.
      calls: Number of calls that had blocks to choose from.
      settings: What is attended to.
    """

    lookup: Any = None
    calls: Any = None
    settings: MemorySettings = struct.field(pytree_node=False, default=MemorySettings())

    @property
    def layers(self) -> Any:
        """What each layer has of its own, with a leading axis of layers."""
        return self.key, self.value, self.lookup

    @property
    def shared(self) -> "BlockMemory":
        """The memory without what each layer has of its own."""
        return self.replace(key=None, value=None, lookup=None)

    def of_layer(self, own: Any) -> "BlockMemory":
        """The memory of one layer."""
        return self.replace(key=own[0], value=own[1], lookup=own[2])

    @property
    def takes_positions(self) -> bool:
        """Whether tokens may have positions that are given; here they are counted."""
        return False

    @property
    def bytes_read(self) -> int:
        """Size of what a step of one token reads: representatives, keys and values."""
        layers, batch, _, g, k = self.key.shape
        tokens = min(self.settings.attended + self.settings.block, self.slots)
        read = 2 * layers * batch * tokens * g * k * self.key.dtype.itemsize
        looked_at = self.lookup.representatives
        return read + looked_at.size * looked_at.dtype.itemsize

    @property
    def whole(self) -> Int[Array, ""]:
        """Number of blocks that a call may look up."""
        s = self.settings
        behind = jnp.maximum(self.length - s.window - s.sinks, 0)
        return jnp.minimum(behind // s.block, (self.slots - s.sinks) // s.block)

    def attend(
        self,
        attention: Callable[..., Any],
        query: Float[Array, "b t h k"],
        key: Float[Array, "b t g k"],
        value: Float[Array, "b t g k"],
        visible: Visible,
        rotate: Callable[..., Array],
    ) -> tuple[Array, None, Any]:
        """Attends from new tokens to first, near and retrieved ones.

        Args:
          attention: The model's, which must be the default: the memory attends by itself.
          query: Of the new tokens, not rotated.
          key: Of the new tokens, not rotated.
          value: Of the new tokens.
          visible: Which of the cache's keys are text.
          rotate: Turns queries or keys by their positions, or by others given as `positions`.

        Returns:
          The output, no weights, and what the layer now keeps.

        Raises:
          ValueError: The model has an attention or a window of its own.
        """
        if attention is not attend or visible.window is not None:
            raise ValueError(
                "a block memory attends by itself, expected a model with the default attention and "
                f"no window, got {attention} and window={visible.window}"
            )
        s, (b, t, g, k) = self.settings, key.shape
        text = jnp.asarray(visible.keys)
        positions = jnp.maximum(jnp.cumsum(text, axis=1) - 1, 0)
        new = jax.lax.dynamic_slice_in_dim(text, self.length, t, axis=1)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(kept, own.astype(kept.dtype), self.length, axis=1)
            for kept, own in ((self.key, key), (self.value, value))
        )
        far_query = rotate(query, positions=jnp.full((1, t), s.window))
        found, moments = self._look_up(far_query, text, new)
        places, ok = self._nearest(t)
        behind = self.length + jnp.arange(t)[:, None] - places
        seen = (ok & (behind >= 0))[None] & text[:, None, places]
        own_key = rotate(keys[:, places], positions=positions[:, places])
        logits = grouped_logits(rotate(query), own_key)
        if s.clamped:
            far = grouped_logits(far_query, _at_origin(rotate, keys[:, places]))
            logits = jnp.where(behind < s.window, logits, far)
        chosen = jnp.arange(s.most) < self.lookup.budget[:, None, None]
        chosen &= found.scores > -jnp.inf
        slots, there = self._slots(found.blocks, chosen, text, g)
        old_key, old_value = (
            kept[jnp.arange(b)[:, None, None], slots, jnp.arange(g)[:, None]]
            for kept in (keys, values)
        )
        if s.clamped:
            old_query, old_key = far_query, _at_origin(rotate, old_key.swapaxes(1, 2))
        else:
            at = positions[jnp.arange(b)[:, None, None], slots].reshape(b * g, -1)
            turned = rotate(old_key.reshape(b * g, -1, 1, k), positions=at)
            old_query, old_key = rotate(query), turned.reshape(b, g, -1, k).swapaxes(1, 2)
        logits = jnp.concatenate([logits, grouped_logits(old_query, old_key)], axis=-1)
        near = jnp.broadcast_to(seen[:, None], (b, g, *seen.shape[1:]))
        there = jnp.broadcast_to(there[:, :, None], (b, g, t, there.shape[-1]))
        mask = jnp.concatenate([near, there], axis=-1)[:, :, None]
        weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min), axis=-1)
        all_values = jnp.concatenate([values[:, places].swapaxes(1, 2), old_value], axis=2)
        out = jnp.einsum("bgrts,bgsk->btgrk", weights.astype(value.dtype),
                         all_values.astype(value.dtype))  # fmt: skip
        local = seen & (behind < s.window) & new[:, :, None]
        got = jnp.sum(weights[..., : len(places)] * local[:, None, None], axis=-2)
        received = self.lookup.received.at[:, :, places].add(got.reshape(b, -1, len(places)))
        lookup = self.lookup._replace(
            received=received,
            representatives=self._closed(keys, received, text, t),
            moments=moments,
            information=self._learned(found),
            blocks=jnp.where(chosen, found.blocks, -1),
        )
        return out.reshape(query.shape).astype(value.dtype), None, (keys, values, lookup)

    def _nearest(self, t: int) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
        """Places of the first tokens and of those in no whole block, and which of them count."""
        s = self.settings
        size = min(s.window + s.block + t, self.slots - s.sinks)
        first = s.sinks + self.whole * s.block
        places = jnp.minimum(first, self.slots - size) + jnp.arange(size)
        sinks = jnp.arange(s.sinks)
        return (
            jnp.concatenate([sinks, places]),
            jnp.concatenate([jnp.ones(s.sinks, bool), places >= first]),
        )

    def _slots(
        self,
        blocks: Int[Array, "b p m"],
        chosen: Bool[Array, "b p m"],
        text: Bool[Array, "b s"],
        heads: int,
    ) -> tuple[Int[Array, "b g n"], Bool[Array, "b g n"]]:
        """Slots that each head of keys looks up, and which of them it may attend to."""
        s, b = self.settings, len(text)
        slots = s.sinks + blocks[..., None] * s.block + jnp.arange(s.block)
        there = chosen[..., None] & text[jnp.arange(b)[:, None, None, None], slots]
        slots, there = (x.reshape(b, blocks.shape[1], -1) for x in (slots, there))
        shape = (b, heads, slots.shape[-1])
        return jnp.broadcast_to(slots, shape), jnp.broadcast_to(there, shape)

    def _look_up(
        self, query: Array, text: Bool[Array, "b s"], new: Bool[Array, "b t"]
    ) -> tuple[Found, Moments]:
        """Blocks [b, p, most] that a call's queries find, and the moments with these queries."""
        s, (b, t, h, k) = self.settings, query.shape
        lookup = self.lookup
        parts = lookup.moments.mean.shape[1]
        queries = query.reshape(b, t, parts, -1).swapaxes(1, 2)
        representatives = lookup.representatives.reshape(b, -1, parts, h // parts * k)
        blocks = representatives.shape[1]
        kept = text[:, s.sinks : s.sinks + blocks * s.block].reshape(b, blocks, s.block).any(-1)
        there = kept & (jnp.arange(blocks) < self.whole)

        def of_part(
            moments: Moments, query: Array, new: Array, representatives: Array, there: Array
        ) -> tuple[Found, Moments]:
            moments = update_moments(moments, query, new)
            probe = probe_query(query, moments, new, weighting=s.weighting)
            found = retrieve(
                representatives,
                probe,
                there,
                count=s.most,
                metric=s.metric,
                temperature=s.temperature,
            )
            return found, moments

        of_text = jax.vmap(of_part, (0, 0, None, 1, None))
        return jax.vmap(of_text)(lookup.moments, queries, new, representatives, there)

    def _closed(
        self, keys: Array, received: Array, text: Bool[Array, "b s"], t: int
    ) -> Float[Array, "b blocks h k"]:
        """Representatives, those included of blocks that are whole after this call."""
        s, kept = self.settings, self.lookup.representatives
        number = min(t // s.block + 1, kept.shape[1])
        first = jnp.minimum(self.whole, kept.shape[1] - number)
        start, size = s.sinks + first * s.block, number * s.block
        new = block_representatives(
            jax.lax.dynamic_slice_in_dim(keys, start, size, axis=1),
            jax.lax.dynamic_slice_in_dim(received, start, size, axis=2),
            jax.lax.dynamic_slice_in_dim(text, start, size, axis=1),
            block=s.block,
            top=s.top,
        )
        return jax.lax.dynamic_update_slice_in_dim(kept, new, first, axis=1)

    def _learned(self, found: Found) -> Float[Array, " b"]:
        """Mean information of a layer over calls, this one included where there was a choice."""
        before, own = self.lookup.information, found.information.mean(axis=1)
        return jnp.where(self.whole > 1, before + (own - before) / (self.calls + 1), before)

    def after(self, kept: Any, mask: Array, new: Bool[Array, "b t"]) -> "BlockMemory":
        """The memory with further tokens, and the layers' budgets for the next call."""
        s, choice = self.settings, self.whole > 1
        key, value, lookup = kept
        memory: Any = super().after((key, value), mask, new)
        if s.dynamic:
            layers = len(key)

            def spent(information: Array) -> Array:
                return layer_budgets(
                    information, total=s.blocks * layers, least=s.least, most=s.most
                )

            own = jax.vmap(spent, 1, 1)(lookup.information)
            lookup = lookup._replace(budget=jnp.where(choice, own, lookup.budget))
        return memory.replace(lookup=lookup, calls=self.calls + choice)


def block_memory(
    module: Llama,
    batch: int,
    length: int,
    settings: MemorySettings = MemorySettings(),  # noqa: B008  a named tuple of constants
    dtype: Dtype = None,
) -> BlockMemory:
    """A memory of a decoder that has read nothing.

    Args:
      module: The decoder, with rotary positions as it was trained and the default attention.
      batch: Number of texts.
      length: Number of tokens that it has room for.
      settings: What is attended to.
      dtype: Of keys and values; None takes the compute dtype.

    Returns:
      What `Llama.__call__` and `rml.models.generate` take as their cache.

    Raises:
      ValueError: A setting is out of range, or there is no room for the blocks that are looked up.
      UserError: The weighting or the metric is unknown.
    """
    s = settings
    weighting_of(s.weighting)
    if s.metric not in METRICS:
        raise unknown("metric", s.metric, METRICS)
    blocks = (length - s.sinks) // s.block if s.block > 0 else 0
    if min(s.block, s.blocks, s.window, s.top) < 1 or s.sinks < 0 or s.temperature <= 0:
        raise ValueError(
            f"{s}, expected block, blocks, window and top of at least 1, sinks of at least 0 and a "
            "temperature above 0"
        )
    if s.dynamic and not 0 <= s.least <= s.blocks:
        raise ValueError(f"least={s.least}, expected 0 to blocks={s.blocks}")
    if blocks < s.most:
        raise ValueError(
            f"length={length} has room for {blocks} blocks of {s.block} after {s.sinks} sinks, "
            f"expected at least the {s.most} that a layer looks up"
        )
    kv_heads, width = module.head_shape()
    parts = kv_heads if s.per_head else 1
    dtype = dtype or module.dtype or module.param_dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"a block memory keeps floating-point numbers, got {jnp.dtype(dtype)}")
    layers, heads = module.depth, module.heads
    lookup = Lookup(
        jnp.zeros((layers, batch, heads, length)),
        jnp.zeros((layers, batch, blocks, heads, width)),
        no_moments(layers, batch, parts, heads // parts * width),
        jnp.zeros((layers, batch)),
        jnp.full((layers, batch), s.blocks),
        jnp.full((layers, batch, parts, s.most), -1),
    )
    kept = jnp.zeros((layers, batch, length, kv_heads, width), dtype)
    return BlockMemory(
        key=kept,
        value=kept,
        mask=jnp.zeros((batch, length), bool),
        read=jnp.zeros(batch, jnp.int32),
        length=jnp.zeros((), jnp.int32),
        lookup=lookup,
        calls=jnp.zeros((), jnp.int32),
        settings=settings,
    )


def grouped_logits(
    query: Float[Array, "b t h k"], key: Float[Array, "b s g k"]
) -> Float[Array, "b g r t s"]:
    """Logits of each group of heads with the keys that it reads."""
    b, t, h, k = query.shape
    g = key.shape[2]
    grouped = query.reshape(b, t, g, h // g, k).transpose(0, 2, 3, 1, 4)
    return scaled_logits(grouped, key.swapaxes(1, 2)[:, :, None], k**-0.5)


def _at_origin(rotate: Callable[..., Array], key: Float[Array, "b s g k"]) -> Array:
    """Keys as they are, with the magnitude that rotation gives them."""
    return rotate(key, positions=jnp.zeros((1, key.shape[1]), jnp.int32))
