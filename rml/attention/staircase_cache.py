"""A cache whose keys and values lose bits as they age: staircase adaptive quantisation.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, the table of staircase adaptive quantisation (SAQ). The newest tokens stay as they
are, in a residual. Once it holds S tokens they become a chunk of B_2 bits, and every older chunk
goes down one step: from B_2 to B_3 and so on to B_q, at which all that is older stays. Two things
that the table leaves open are our reading: that the newest chunk has B_2 bits, and that the chunk
that leaves the last step joins the old ones at B_q.

With two steps there is a residual, and everything older has a few bits, as in KIVI's uniform cache
(Liu et al., KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, arXiv:2402.02750), whose
values leave the residual one token at a time, while its keys leave it in chunks too. The group
quantiser is KIVI's: keys in groups of tokens of one channel, values in groups of channels of one
token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rml.errors import UserError
from rml.models.caches import Cache
from rml.models.llama import Llama
from rml.ops.attention_parts import Visible
from rml.ops.quantize import pack_groups, unpack_groups

WHOLE = {16: jnp.float16, 32: jnp.float32}
"""Bits of numbers that are not quantised."""
TOKENS, CHANNELS = -3, -1
"""Axes of [..., tokens, heads, channels], along which keys and values are grouped."""


class Staircase(NamedTuple):
    """How bits fall with age.

    Attributes:
      bits: B_1 to B_q, the residual's first: 16 or 32; the others those too, or 8, 4, 2 or 1.
      chunk: S, tokens that go down a step together.
      group: G, values of a channel or a token that share a scale and an offset.
    """

    bits: tuple[int, ...] = (16, 8, 4, 2)
    chunk: int = 128
    group: int = 32

    @property
    def steps(self) -> int:
        """Number of chunks between the residual and what is old, q - 2."""
        return len(self.bits) - 2


class Stairs(NamedTuple):
    """Keys or values of a layer, or of all layers with a leading axis.

    Attributes:
      residual: [b, S, g, k], the newest tokens, fewer than S of them.
      rings: Chunks of B_2 to B_{q-1} bits, the newest first; arrays or `rml.ops.Packed`.
      old: Everything older at B_q bits, with room for some chunks.
    """

    residual: Any
    rings: tuple[Any, ...]
    old: Any


def init_stairs(shape: tuple[int, ...], staircase: Staircase, *, chunks: int, axis: int) -> Stairs:
    """Makes stairs that hold nothing.

    Args:
      shape: Shape [..., b, tokens, g, k] of tokens' keys or values; the number of tokens is not
        read.
      staircase: How bits fall.
      chunks: Number of chunks that there is room for.
      axis: `TOKENS` or `CHANNELS`, along which groups lie.

    Raises:
      UserError: The staircase is not as described, or groups do not divide chunks or heads.
    """
    check(staircase, shape[-1])
    *lead, _, g, k = shape

    def empty(bits: int, number: int) -> Any:
        return lowered(
            jnp.zeros((*lead, number * staircase.chunk, g, k)), bits, staircase.group, axis
        )

    bits = staircase.bits
    old = max(1, chunks - staircase.steps)
    return Stairs(
        empty(bits[0], 1), tuple(empty(own, 1) for own in bits[1:-1]), empty(bits[-1], old)
    )


def check(staircase: Staircase, width: int) -> None:
    """Raises `UserError` unless a staircase fits heads of a width."""
    bits, chunk, group = staircase
    if len(bits) < 2 or bits[0] not in WHOLE or set(bits) - {*WHOLE, 8, 4, 2, 1}:
        raise UserError(
            f"bits={bits}, expected 16 or 32 and then one or more of 32, 16, 8, 4, 2 and 1"
        )
    if list(bits) != sorted(bits, reverse=True):
        raise UserError(f"bits={bits}, expected not to rise")
    if group < 1 or chunk < 1 or chunk % group:
        raise UserError(f"chunk={chunk} and group={group}, expected a multiple of the group")
    if width % min(group, width) or any(width * own % 8 for own in bits):
        raise UserError(
            f"heads of width {width}, expected a multiple of group={group} that fills bytes"
        )


def lowered(x: Float[Array, "... t g k"], bits: int, group: int, axis: int) -> Any:
    """Stores numbers at some bits: as an array of `WHOLE`, or `rml.ops.Packed` groups.

    At 16 bits they are cut to the range of float16, as scales of groups are.
    """
    if bits in WHOLE:
        return _cut(x, WHOLE[bits])
    own = min(group, x.shape[-1]) if axis == CHANNELS else group
    return pack_groups(x, bits=bits, group=own, axis=axis)


def _cut(x: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Rounds to a floating type; what lies beyond its range becomes its greatest number."""
    most = float(jnp.finfo(dtype).max)
    return jnp.clip(x.astype(jnp.float32), -most, most).astype(dtype)


def raised(kept: Any) -> Float[Array, "... t g k"]:
    """Returns what `lowered` keeps, as float32."""
    return kept.astype(jnp.float32) if isinstance(kept, jax.Array) else unpack_groups(kept)


def append(
    stairs: Stairs, new: Float[Array, "b t g k"], length: Any, staircase: Staircase, *, axis: int
) -> Stairs:
    """Adds tokens to one layer's stairs; whole chunks of the residual go down.

    Args:
      stairs: Stairs of one layer.
      new: The tokens.
      length: Number of tokens that were added before.
      staircase: How bits fall.
      axis: `TOKENS` or `CHANNELS`.

    Returns:
      The stairs, of the same shapes.
    """
    chunk, t = staircase.chunk, new.shape[1]
    # Behind what is left there is room for a whole chunk, which a slice takes.
    residual = jnp.pad(stairs.residual, ((0, 0), (0, t + chunk), (0, 0), (0, 0)))
    held = length % chunk
    residual = lax.dynamic_update_slice_in_dim(residual, _cut(new, residual.dtype), held, axis=1)
    number = (held + t) // chunk

    def down(i: Array, carry: tuple[tuple[Any, ...], Any]) -> tuple[tuple[Any, ...], Any]:
        whole = lax.dynamic_slice_in_dim(residual, i * chunk, chunk, axis=1)
        return _pushed(*carry, whole, length // chunk + i, staircase, axis)

    rings, old = lax.fori_loop(0, number, down, (stairs.rings, stairs.old))
    rest = lax.dynamic_slice_in_dim(residual, number * chunk, chunk, axis=1)
    return Stairs(rest, rings, old)


def _pushed(
    rings: tuple[Any, ...], old: Any, whole: Array, chunks: Array, staircase: Staircase, axis: int
) -> tuple[tuple[Any, ...], Any]:
    """Rings and old chunks after one more chunk; there were so many before."""
    above = [whole, *rings]
    below = [
        lowered(raised(one), bits, staircase.group, axis)
        for one, bits in zip(above, staircase.bits[1:], strict=True)
    ]
    # A ring that holds nothing yet is written to the first place, where the first chunk comes.
    place = jnp.maximum(chunks - staircase.steps, 0)

    def written(leaf: Array, own: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(leaf, own, place * own.shape[1], axis=1)

    return tuple(below[:-1]), jax.tree.map(written, old, below[-1])


def read(
    stairs: Stairs, length: Any, staircase: Staircase, *, slots: int
) -> Float[Array, "b slots g k"]:
    """Reads the tokens that one layer's stairs hold, token i in slot i, float32.

    Args:
      stairs: Stairs of one layer.
      length: Number of tokens that were added.
      staircase: How bits fall.
      slots: Number of slots, a multiple of the chunk; those from `length` on hold anything.
    """
    chunks = length // staircase.chunk
    old = raised(stairs.old)[:, :slots]
    # Behind the last slot there is room for the residual of a cache that is full.
    behind = slots + staircase.chunk - old.shape[1]
    found = jnp.pad(old, ((0, 0), (0, behind), (0, 0), (0, 0)))
    # The oldest comes first: what a ring without a chunk writes is written over by newer ones.
    for i in range(staircase.steps, 0, -1):
        place = jnp.maximum(chunks - i, 0) * staircase.chunk
        found = lax.dynamic_update_slice_in_dim(found, raised(stairs.rings[i - 1]), place, axis=1)
    place = chunks * staircase.chunk
    found = lax.dynamic_update_slice_in_dim(found, raised(stairs.residual), place, axis=1)
    return found[:, :slots]


def bits_by_age(staircase: Staircase, length: int) -> Int[np.ndarray, " n"]:
    """Returns the bits of every token of a text of so many, the newest first."""
    chunk = staircase.chunk
    held = length % chunk
    older = np.arange(length - held) // chunk + 1
    index = np.concatenate([np.zeros(held, int), np.minimum(older, len(staircase.bits) - 1)])
    return np.asarray(staircase.bits)[index]


def bytes_held(staircase: Staircase, length: int, *, width: int) -> int:
    """Counts the bytes that a head of keys and one of values take of one text in one layer.

    Counted are codes, and of every group two numbers of 16 bits; room that is not used is not.

    Args:
      staircase: How bits fall.
      length: Number of tokens.
      width: Width of the head.
    """
    bits = bits_by_age(staircase, length)
    quantised = int((bits < min(WHOLE)).sum())
    groups = quantised * width // staircase.group  # of keys
    groups += quantised * width // min(staircase.group, width)
    return 2 * int(bits.sum()) * width // 8 + 4 * groups


class StaircaseCache(Cache):
    """Keys, rotated, and values of a whole text, in fewer bits the older they are.

    Every call attends to what was kept before it and, as they are, to its own tokens. A text that
    is read token by token, or in parts as by `rml.models.read_in_chunks`, sees quantised keys.
    Padding takes places of chunks and groups, on either side.

    Attributes:
      staircase: How bits fall.
    """

    staircase: Staircase = struct.field(pytree_node=False, default=Staircase())

    def attend(
        self,
        attention: Callable[..., Any],
        query: Array,
        key: Array,
        value: Array,
        visible: Visible,
        rotate: Callable[..., Array],
    ) -> tuple[Array, Array | None, Any]:
        """Attends to what one layer keeps and to the new tokens, see `Cache.attend`.

        Returns:
          The output, the attention weights, and what the layer keeps: every step reads all of it.
        """
        query, key = rotate(query), rotate(key)
        seen, kept = [], []
        for stairs, new, axis in ((self.key, key, TOKENS), (self.value, value, CHANNELS)):
            before = read(stairs, self.length, self.staircase, slots=self.slots).astype(new.dtype)
            seen.append(lax.dynamic_update_slice_in_dim(before, new, self.length, axis=1))
            kept.append(append(stairs, new, self.length, self.staircase, axis=axis))
        y, weights = attention(query, *seen, visible)
        return y, weights, tuple(kept)

    def after(self, added: Any, mask: Array, new: Bool[Array, "b t"]) -> "StaircaseCache":
        """Returns the cache with further tokens, see `Cache.after`."""
        found: Any = self.with_kept(mask, new, key=added[0], value=added[1])
        return found


def staircase_cache(
    module: Llama,
    batch: int,
    length: int,
    staircase: Staircase = Staircase(),  # noqa: B008
) -> StaircaseCache:
    """Makes an empty cache for a decoder.

    Args:
      module: The decoder.
      batch: Number of texts.
      length: Number of tokens that it has room for; rounded up to whole chunks.
      staircase: How bits fall with age.

    Raises:
      UserError: The staircase is not as described.

    Example:
      >>> cache = staircase_cache(module, 1, 4096, Staircase((16, 8, 4, 2), chunk=128))
      >>> hidden, cache = read_in_chunks(module, variables, tokens, cache=cache, chunk=128)
    """
    heads, width = module.head_shape()
    chunks = -(-length // staircase.chunk)
    shape = (module.depth, batch, 0, heads, width)
    key, value = (
        init_stairs(shape, staircase, chunks=chunks, axis=axis) for axis in (TOKENS, CHANNELS)
    )
    return StaircaseCache(
        key=key,
        value=value,
        mask=jnp.zeros((batch, chunks * staircase.chunk), bool),
        read=jnp.zeros(batch, jnp.int32),
        length=jnp.zeros((), jnp.int32),
        staircase=staircase,
    )
