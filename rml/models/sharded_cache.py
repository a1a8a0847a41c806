"""A cache in which every head of keys keeps only the blocks that its queries may still read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from rml.errors import UserError
from rml.models.attention import attend
from rml.models.caches import Cache, Quantised, quantise
from rml.models.layers import Dtype
from rml.models.llama import Llama
from rml.ops.attention_parts import Visible


class Shards(NamedTuple):
    """Where heads of keys keep blocks, with n blocks of a text and c places of one head at most.

    Attributes:
      place: [g, n], the place of each block among all heads' places.
      holds: [n, g, c], once a block of queries is reached, the block in each place; n where none.
      seen: [h, n + 1, n], by block of keys and of queries whether a head may see it; the last row
        is of no block.
      first: [g], the first place of each head.
    """

    place: Int[np.ndarray, "g n"]
    holds: Int[np.ndarray, "n g c"]
    seen: Bool[np.ndarray, "h m n"]
    first: Int[np.ndarray, " g"]


def keeps_left(pattern: Bool[np.ndarray, "h n n"]) -> bool:
    """Tells whether blocks that a head has left stay unseen, so that its cache can drop them.

    Args:
      pattern: Blocks of keys that each head sees, of queries or of keys; what heads of queries keep
        to, those do that they share.
    """
    return not _come_back(pattern).any()


def _come_back(pattern: Bool[np.ndarray, "h n n"]) -> Bool[np.ndarray, "h m n"]:
    """By head, block of queries but the first, and earlier block of keys: seen after not seen."""
    return np.tril(pattern[:, 1:] & ~pattern[:, :-1])


def shards_of(pattern: Bool[np.ndarray, "h n n"], kv_heads: int) -> Shards:
    """Plans a cache: a block takes the first place whose block no query will see any more.

    Args:
      pattern: Blocks of keys that each head sees; heads of one head of keys share its places.
      kv_heads: Number of heads of keys.

    Raises:
      UserError: The pattern is not causal, leaves out a block's own keys, or comes back to a block
        that a head of keys had left.
    """
    heads, n = pattern.shape[:2]
    if pattern.shape[2] != n or heads % kv_heads:
        raise UserError(
            f"a pattern of shape {pattern.shape}, expected [heads, blocks, blocks] with a multiple "
            f"of {kv_heads} heads"
        )
    kept = np.asarray(pattern.reshape(kv_heads, -1, n, n).any(axis=1))
    if np.triu(kept, 1).any() or not kept[:, range(n), range(n)].all():
        raise UserError("the pattern shows later blocks or hides a block's own, expected neither")
    if not keeps_left(kept):
        head, row, block = np.argwhere(_come_back(kept))[0]
        raise UserError(
            f"head {head} of keys comes back to block {block} at block {row + 1} of queries; "
            "expected a pattern that never does, as absolute strides do not"
        )
    local, widths = np.zeros((kv_heads, n), int), kept.sum(axis=2).max(axis=1)
    holds = np.full((n, kv_heads, widths.max()), n)
    for head in range(kv_heads):
        held = np.full(widths[head], n)
        for row in range(n):
            held[[block < n and not kept[head, row, block] for block in held]] = n
            local[head, row] = np.argmax(held == n)
            held[local[head, row]] = row
            holds[row, head, : len(held)] = held
    first = np.cumsum(widths) - widths
    seen = np.concatenate([pattern.swapaxes(1, 2), np.zeros((heads, 1, n), bool)], axis=1)
    return Shards(local + first[:, None], holds, seen, first)


class ShardedCache(Cache):
    """Keys and values of the blocks that each head of keys may still read.

    All layers attend by its pattern, whatever attention the model has. Padding takes places of
    text, on either side: read texts of different lengths apart. A place is never larger than
    what it holds: heads that see more blocks have more of them.

    Attributes:
      shards: Arrays of `Shards`.
      block: Number of tokens of a block.
      places: Number of blocks that it holds, over all heads of keys.
    """

    shards: Any = None
    block: int = struct.field(pytree_node=False, default=1)
    places: int = struct.field(pytree_node=False, default=0)

    @property
    def _arrays(self) -> list[Any]:
        """Keys, values and what is known of every token; the plan is a constant."""
        return jax.tree.leaves(self.replace(shards=None))

    def attend(
        self,
        attention: Callable[..., Any],
        query: Array,
        key: Array,
        value: Array,
        visible: Visible,
        rotate: Callable[..., Array],
    ) -> tuple[Array, Array | None, Any]:
        """Attends by the pattern to what is kept and to the new tokens, see `Cache.attend`."""
        del attention
        if visible.window is not None:
            raise ValueError(
                f"window={visible.window} in a model with a sharded cache, expected none"
            )
        query, key = rotate(query), rotate(key)
        places = self._places()
        keys, values = (
            jnp.concatenate([self._read(old, new.dtype), new], axis=1)
            for old, new in zip((self.key, self.value), (key, value), strict=True)
        )
        t, h = query.shape[1:3]
        groups = key.shape[2]
        there = self.mask if visible.keys is None else jnp.asarray(visible.keys)
        new = self.length + jnp.arange(t)
        # Of every head of keys: where its tokens stand in the text, the new ones last.
        at = jnp.concatenate([places, jnp.broadcast_to(new, (groups, t))], axis=1)
        known = jnp.concatenate([places < self.length, jnp.ones((groups, t), bool)], axis=1)
        mask = known & there.take(at, axis=1, mode="clip")
        at, mask = (jnp.repeat(x, h // groups, axis=axis) for x, axis in ((at, 0), (mask, 1)))

        def of_head(head: Array, at: Array) -> Array:
            rows = self.shards.seen[head][jnp.minimum(at // self.block, self._blocks)]
            return rows[:, new // self.block].T & (at <= new[:, None])

        pairs = jax.vmap(of_head)(jnp.arange(h), at)
        allowed = pairs & mask[:, :, None]
        y, weights = attend(query, keys, values, bias=_hiding(allowed))
        return y, weights, (key, value)

    def after(self, added: Any, mask: Array, new: Bool[Array, "b t"]) -> "ShardedCache":
        """Returns the cache with further tokens, see `Cache.after`."""
        key, value = map(jax.vmap(self._stored), (self.key, self.value), added)
        found: Any = self.with_kept(mask, new, key=key, value=value)
        return found

    @property
    def _blocks(self) -> int:
        return self.shards.place.shape[1]

    def _places(self) -> Int[Array, "g s"]:
        """Places in the text of all tokens that a head of keys holds; past its end where none."""
        last = jnp.maximum(self.length - 1, 0) // self.block
        starts = self.shards.holds[last] * self.block
        return (starts[..., None] + jnp.arange(self.block)).reshape(len(starts), -1)

    def _read(self, kept: Any, dtype: Any) -> Array:
        """What heads hold, [b, s, g, k]; of a head with fewer places the rest is hidden."""
        width = self.shards.holds.shape[2]
        index = jnp.minimum(self.shards.first[:, None] + jnp.arange(width), self.places - 1)

        def of(leaf: Array) -> Array:
            blocks = leaf.reshape(leaf.shape[0], self.places, self.block, -1)[:, index]
            b, g, c, size, k = blocks.shape
            return blocks.reshape(b, g, c * size, k).swapaxes(1, 2)

        found = jax.tree.map(of, kept)
        if isinstance(kept, Quantised):
            return (found.integers * found.scale).astype(dtype)
        return found.astype(dtype)

    def _stored(self, kept: Any, new: Array) -> Any:
        """Writes those new tokens that a query may still see."""
        t, groups = new.shape[1:3]
        at = self.length + jnp.arange(t)
        block, last = at // self.block, (self.length + t - 1) // self.block
        place = self.shards.place[:, block]
        alive = (self.shards.holds[last][:, :, None] == block).any(axis=1)
        index = jnp.where(alive, place * self.block + at % self.block, self.places * self.block)

        def write(leaf: Array, own: Array) -> Array:
            flat = own.swapaxes(1, 2).reshape(own.shape[0], groups * t, -1)
            return leaf.at[:, index.ravel()].set(flat, mode="drop")

        added = quantise(new) if isinstance(kept, Quantised) else new.astype(kept.dtype)
        return jax.tree.map(write, kept, added)


def sharded_cache(
    module: Llama,
    batch: int,
    pattern: Bool[np.ndarray, "h n n"],
    *,
    block: int,
    dtype: Dtype = None,
) -> ShardedCache:
    """Makes an empty cache for a decoder whose layers all attend by a pattern of blocks.

    Args:
      module: The decoder.
      batch: Number of texts.
      pattern: Blocks of keys that each head sees, of as many blocks as it has room for.
      block: Number of tokens of a block.
      dtype: Type of keys and values, see `rml.models.caches.empty_cache`.

    Raises:
      UserError: The decoder has a window, the pattern has another number of heads, or as
        `shards_of`.
    """
    if module.window is not None:
        raise UserError(f"window={module.window} in a model for a sharded cache, expected none")
    kv_heads, _ = module.head_shape()
    if len(pattern) != module.heads:
        raise UserError(f"a pattern of {len(pattern)} heads, expected {module.heads}")
    shards = shards_of(pattern, kv_heads)
    places = int(shards.place.max()) + 1
    empty = module.init_cache(batch, places * block, dtype)
    key, value = jax.tree.map(lambda leaf: leaf[:, :, :, 0], (empty.key, empty.value))
    return ShardedCache(
        key=key,
        value=value,
        mask=jnp.zeros((batch, pattern.shape[1] * block), bool),
        read=empty.read,
        length=empty.length,
        shards=jax.tree.map(jnp.asarray, shards),
        block=block,
        places=places,
    )


def _hiding(allowed: Bool[Array, "b h t s"]) -> Any:
    """What `attend` adds to its logits, for each text its own; finite where nothing is allowed."""
    return lambda queries, keys: jnp.where(allowed, 0.0, jnp.finfo(jnp.float32).min)
