"""A decoder's memory of blocks: it keeps the whole text and attends to little of it.

Every call attends to the first tokens, to the nearest ones, and to those blocks of the past that a
probe of the call's queries looks up, see `rml.attention.actqkv`. All three are one softmax. Only
what is near has true rotary distances; tokens farther than the window all lie at its distance, so
that no distance is longer than those of training.

Source: InfLLM (Xiao et al., 2024, arXiv:2402.04617), section 3, for the memory and its distances.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from rml.attention.actqkv import (
    BY_ATTENTION,
    block_representatives,
    layer_budgets,
    window_attention,
)
from rml.attention.block_lookup import MemorySettings, empty_lookup, look_up
from rml.models.attention import attend
from rml.models.caches import Cache
from rml.models.layers import Dtype
from rml.models.llama import Llama
from rml.ops.attention_parts import Visible, scaled_logits


class BlockMemory(Cache):
    """Keys and values of a whole text, not rotated, of which each call attends to some.

    Slot i holds token i. Tokens that have left the window of a call's first query form blocks of
    equal size; the rest of a block stays near until the block is whole. A call looks up blocks
    once, for all of its tokens: long texts are read in parts, see `rml.models.read_in_chunks`.

    Padding keeps its slots: it fills first tokens, blocks and the window of its row, whose output
    is then not that of the text alone. Read texts of different lengths apart.

    Attributes:
      lookup: What each layer finds blocks by.
      turn: The number of the layer that attends, which reads no more than it attends to.
      calls: Number of calls that had blocks to choose from.
      settings: What is attended to.
    """

    lookup: Any = None
    turn: Any = None
    calls: Any = None
    settings: MemorySettings = struct.field(pytree_node=False, default=MemorySettings())

    def of_layer(self, number: Int[Array, ""]) -> "BlockMemory":
        """Returns the memory with the number of a layer, which takes its part when it attends."""
        return self.replace(turn=number)

    @property
    def takes_positions(self) -> bool:
        """Whether tokens may have positions that are given; here they are counted."""
        return False

    @property
    def bytes_read(self) -> int:
        """Size of what one token's attention reads: representatives, keys and values."""
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
          query: Queries of the new tokens, not rotated.
          key: Keys of the new tokens, not rotated.
          value: Values of the new tokens.
          visible: Which of the cache's keys are text.
          rotate: Turns queries or keys by their positions, or by others given as `positions`.

        Returns:
          The output, no weights, and what the layer adds: keys and values of the new tokens, the
          attention that those at `_nearest` received, and the layer's `Lookup`, whose
          representatives are those of blocks at `_closing`.

        Raises:
          ValueError: The model has an attention or a window of its own.
        """
        if attention is not attend or visible.window is not None:
            raise ValueError(
                "a block memory attends by itself, expected a model with the default attention and "
                f"no window, got {attention} and window={visible.window}"
            )
        s, (b, t, g, k) = self.settings, key.shape
        lookup = jax.tree.map(lambda leaf: leaf[self.turn], self.lookup._replace(received=None))
        text = jnp.asarray(visible.keys)
        positions = jnp.maximum(jnp.cumsum(text, axis=1) - 1, 0)
        new = jax.lax.dynamic_slice_in_dim(text, self.length, t, axis=1)
        new_key, new_value = key.astype(self.key.dtype), value.astype(self.value.dtype)
        far_query = rotate(query, positions=jnp.full((1, t), s.window))
        got = None
        if s.weighting == BY_ATTENTION:
            own = grouped_logits(rotate(query), rotate(key))
            got = window_attention(own, new[:, None, None]).reshape(b, -1, t)
        found, moments = look_up(lookup, far_query, text, new, self.whole, settings=s, received=got)
        places, ok = self._nearest(t)
        behind = self.length + jnp.arange(t)[:, None] - places
        seen = (ok & (behind >= 0))[None] & text[:, None, places]
        near_key = self._at(places, self.key, new_key)
        own_key = rotate(near_key, positions=positions[:, places])
        logits = grouped_logits(rotate(query), own_key)
        if s.clamped:
            far = grouped_logits(far_query, _at_origin(rotate, near_key))
            logits = jnp.where(behind < s.window, logits, far)
        chosen = jnp.arange(s.most) < lookup.budget[:, None, None]
        chosen &= found.scores > -jnp.inf
        slots, there = self._slots(found.blocks, chosen, text, g)
        old_key, old_value = (
            kept[self.turn, jnp.arange(b)[:, None, None], slots, jnp.arange(g)[:, None]]
            for kept in (self.key, self.value)
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
        near_value = self._at(places, self.value, new_value)
        all_values = jnp.concatenate([near_value.swapaxes(1, 2), old_value], axis=2)
        out = jnp.einsum("bgrts,bgsk->btgrk", weights.astype(value.dtype),
                         all_values.astype(value.dtype))  # fmt: skip
        local = seen & (behind < s.window) & new[:, :, None]
        got = jnp.sum(weights[..., : len(places)] * local[:, None, None], axis=-2)
        got = got.reshape(b, -1, len(places))
        before, own = lookup.information, found.information.mean(axis=1)
        learned = jnp.where(self.whole > 1, before + (own - before) / (self.calls + 1), before)
        _, closing = self._closing(t)
        received = self._received(closing, places, got)
        lookup = lookup._replace(
            received=got,
            representatives=block_representatives(
                self._at(closing, self.key, new_key), received, text[:, closing],
                block=s.block, top=s.top,
            ),
            moments=moments,
            information=learned,
            blocks=jnp.where(chosen, found.blocks, -1),
        )  # fmt: skip
        return out.reshape(query.shape).astype(value.dtype), None, (new_key, new_value, lookup)

    def _at(
        self,
        places: Int[Array, " n"],
        kept: Float[Array, "l b s g k"],
        new: Float[Array, "b t g k"],
    ) -> Float[Array, "b n g k"]:
        """Keys or values of the layer at these places, of which some may be new tokens'."""
        index, t = places - self.length, new.shape[1]
        own = new[:, jnp.clip(index, 0, t - 1)]
        is_new = ((index >= 0) & (index < t))[:, None, None]
        return jnp.where(is_new, own, kept[self.turn, :, places].swapaxes(0, 1))

    def _received(
        self, closing: Int[Array, " n"], places: Int[Array, " m"], got: Float[Array, "b h m"]
    ) -> Float[Array, "b h n"]:
        """Attention that tokens have received, with what those at some places got now."""
        index = closing - places[-1] + len(places) - 1
        now = jnp.where(index >= self.settings.sinks, got[:, :, jnp.maximum(index, 0)], 0.0)
        return jnp.moveaxis(self.lookup.received[self.turn, :, :, closing], 0, -1) + now

    def _closing(self, t: int) -> tuple[Int[Array, ""], Int[Array, " n"]]:
        """First of the blocks that may become whole by t tokens, and the places of all theirs."""
        s, blocks = self.settings, self.lookup.representatives.shape[2]
        number = min(t // s.block + 1, blocks)
        first = jnp.minimum(self.whole, blocks - number)
        return first, s.sinks + first * s.block + jnp.arange(number * s.block)

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

    def after(self, added: Any, mask: Array, new: Bool[Array, "b t"]) -> "BlockMemory":
        """Returns the memory with further tokens, and the layers' budgets for the next call."""
        s, choice, t = self.settings, self.whole > 1, new.shape[1]
        *tokens, lookup = added
        memory: Any = super().after(tuple(tokens), mask, new)
        kept = self.lookup
        lookup = lookup._replace(
            received=kept.received.at[..., self._nearest(t)[0]].add(lookup.received),
            representatives=jax.lax.dynamic_update_slice_in_dim(
                kept.representatives, lookup.representatives, self._closing(t)[0], axis=2
            ),
        )
        if s.dynamic:
            layers = len(self.key)

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
    """Makes a memory of a decoder that has read nothing.

    Args:
      module: The decoder, with rotary positions as it was trained and the default attention.
      batch: Number of texts.
      length: Number of tokens that it has room for.
      settings: What is attended to.
      dtype: Type of keys and values; None takes the compute dtype.

    Returns:
      What `Llama.__call__` and `rml.models.generate` take as their cache.

    Raises:
      ValueError: A setting is out of range, or there is no room for the blocks that are looked up.
      UserError: The weighting or the metric is unknown.
    """
    kv_heads, width = module.head_shape()
    layers = module.depth
    lookup = empty_lookup(
        settings, layers=layers, batch=batch, length=length, heads=module.heads,
        kv_heads=kv_heads, width=width,
    )  # fmt: skip
    dtype = dtype or module.dtype or module.param_dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"a block memory keeps floating-point numbers, got {jnp.dtype(dtype)}")
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
    """Computes logits of each group of heads with the keys that it reads."""
    b, t, h, k = query.shape
    g = key.shape[2]
    grouped = query.reshape(b, t, g, h // g, k).transpose(0, 2, 3, 1, 4)
    return scaled_logits(grouped, key.swapaxes(1, 2)[:, :, None], k**-0.5)


def _at_origin(rotate: Callable[..., Array], key: Float[Array, "b s g k"]) -> Array:
    """Keys as they are, with the magnitude that rotation gives them."""
    return rotate(key, positions=jnp.zeros((1, key.shape[1]), jnp.int32))
