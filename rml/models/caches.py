"""What a decoder keeps of the tokens it has read: all of them, a window, eight bits of each."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int8

from rml.models.layers import Dtype
from rml.ops.attention_parts import Visible


class Quantised(NamedTuple):
    """Vectors in eight bits: integers [..., k] times a scale [..., 1] of each vector."""

    integers: Int8[Array, "*b k"]
    scale: Float[Array, "*b 1"]


def quantise(x: Float[Array, "*b k"]) -> Quantised:
    """Rounds every vector to 255 levels between minus and plus its greatest magnitude."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    integers = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return Quantised(integers.astype(jnp.int8), scale)


class Cache(struct.PyTreeNode):
    """Keys and values of the tokens that a decoder has read, of all layers or of one.

    All layers read one cache and give back what they add, which `after` writes at once: a loop over
    steps then writes in place, where layers that each gave back all they keep would copy it.

    Without a window slot i holds token i. With one, the first slots hold the first tokens and the
    others the last ones in order, so that places in the cache tell who sees whom; tokens keep the
    rotary positions that they have in the text. With a window padding takes slots of first and last
    tokens: the output of a padded row is then not that of the text alone. With sinks places do not
    tell how far a token is from them, so that attention with a factor or a bias of places is
    refused, see `rml.ops.attention_parts.Visible.require_distances`.

    Attributes:
      key: [layers, b, slots, g, k], rotated; an array, or `Quantised`.
      value: The same of values.
      mask: [b, slots], which slots hold text rather than padding.
      read: [b], number of tokens of text read, padding not counted.
      length: Number of tokens read, the same for all texts.
      window: Number of last tokens that are kept; None for all.
      sinks: Number of first tokens that are kept beside the window.
      own: Names of what each layer has of its own, with a leading axis of layers.

    Source: window with sinks, StreamingLLM (Xiao et al., 2023, arXiv:2309.17453), section 3.2,
    whose positions within the cache are not followed.
    """

    key: Any
    value: Any
    mask: Any
    read: Any
    length: Any
    window: int | None = struct.field(pytree_node=False, default=None)
    sinks: int = struct.field(pytree_node=False, default=0)
    own: ClassVar[tuple[str, ...]] = ("key", "value")

    def of_layer(self, number: Int[Array, ""]) -> "Cache":
        """Returns the cache of the layer with this number: what is shared, and its own."""

        def part(leaf: Array) -> Array:
            return leaf[number]

        return self.replace(**{name: jax.tree.map(part, getattr(self, name)) for name in self.own})

    @property
    def slots(self) -> int:
        """Number of tokens that it holds."""
        return self.mask.shape[1]

    @property
    def room(self) -> int | None:
        """Number of tokens that it can read; None where there is no limit."""
        return self.slots if self.window is None else None

    @property
    def takes_positions(self) -> bool:
        """Whether tokens may have positions that are given."""
        return True

    @property
    def start(self) -> jax.Array:
        """Place of the next token among the keys that it sees."""
        return self.length if self.window is None else jnp.minimum(self.length, self.slots)

    @property
    def bytes(self) -> int:
        """Size of all arrays."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self._arrays)

    @property
    def bytes_read(self) -> int:
        """Size of what a step of one token reads."""
        return self.bytes

    @property
    def bytes_per_device(self) -> int:
        """Size of the arrays' shards on one device; of concrete arrays alone."""
        return sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
            for leaf in self._arrays
        )

    @property
    def _arrays(self) -> list[Any]:
        """The arrays whose sizes are counted, or their shapes."""
        return jax.tree.leaves(self)

    def check_room(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless tokens [b, t] fit, as far as is known before they are read."""
        batch, room = self.mask.shape[0], self.room
        read = 0 if isinstance(self.length, jax.core.Tracer) else int(self.length)
        if batch != shape[0] or (room is not None and read + shape[1] > room):
            raise ValueError(
                f"a cache of shape {self.mask.shape} has no room for tokens of shape {shape}"
                + (f" after the {read} that it holds" if read else "")
            )

    def extended(self, kept: Any, new: Array, *, axis: int = 1) -> tuple[Array, Any]:
        """Adds tokens to keys or values, or to the mask.

        Args:
          kept: What is kept of the tokens before, [b, slots, ...]; an array, or `Quantised`.
          new: Keys, values or mask of the new tokens, [b, t, ...].
          axis: The axis of tokens; 2 where one of layers leads.

        Returns:
          What the new tokens see, the first of them at `start`; and what is kept of it.
        """
        quantised = isinstance(kept, Quantised)
        added = quantise(new) if quantised else new.astype(kept.dtype)
        seen = jax.tree.map(lambda old, own: self._appended(old, own, axis), kept, added)
        kept = jax.tree.map(lambda leaf: self._shortened(leaf, new.shape[axis], axis), seen)
        if quantised:
            seen = (seen.integers * seen.scale).astype(new.dtype)
        return seen, kept

    def _appended(self, kept: Array, new: Array, axis: int) -> Array:
        if self.window is not None:
            widths = [(0, 0)] * kept.ndim
            widths[axis] = (0, new.shape[axis])
            kept = jnp.pad(kept, widths)
        return jax.lax.dynamic_update_slice_in_dim(kept, new, self.start, axis=axis)

    def _shortened(self, seen: Array, new: int, axis: int) -> Array:
        if self.window is None:
            return seen
        dropped = jnp.maximum(self.start + new - self.slots, 0)
        first = jax.lax.slice_in_dim(seen, 0, self.sinks, axis=axis)
        last = jax.lax.dynamic_slice_in_dim(seen, self.sinks + dropped, self.window, axis=axis)
        return jnp.concatenate([first, last], axis=axis)

    def attend(
        self,
        attention: Callable[..., Any],
        query: Array,
        key: Array,
        value: Array,
        visible: Visible,
        rotate: Callable[..., Array],
    ) -> tuple[Array, Array | None, Any]:
        """Attends from new tokens to what one layer keeps, these tokens included.

        Args:
          attention: What attends, see `rml.models.attention.Attend`.
          query: Queries of the new tokens, not rotated, [b, t, h, k].
          key: Keys of the new tokens, not rotated, [b, t, g, k].
          value: Values of the new tokens.
          visible: Which of the cache's keys a query may see.
          rotate: Turns queries or keys by their positions, or by others given as `positions`.

        Returns:
          The output, the attention weights, and what the layer adds, for `after`: here keys, as
          they are rotated, and values of the new tokens.
        """
        key = rotate(key)
        keys, values = self.extended(self.key, key)[0], self.extended(self.value, value)[0]
        y, weights = attention(rotate(query), keys, values, visible)
        return y, weights, (key, value)

    def after(self, added: Any, mask: Array, new: Bool[Array, "b t"]) -> "Cache":
        """Returns the cache with further tokens.

        Args:
          added: What the layers add, as `attend` gives it, stacked.
          mask: What is kept of the mask.
          new: Which of the new tokens are text.
        """
        key, value = (
            self.extended(kept, own, axis=2)[1]
            for kept, own in zip((self.key, self.value), added, strict=True)
        )
        return self.with_kept(mask, new, key=key, value=value)

    def with_kept(self, mask: Array, new: Bool[Array, "b t"], **kept: Any) -> "Cache":
        """Returns the cache with what it keeps after further tokens, which it counts.

        Args:
          mask: What is kept of the mask.
          new: Which of the new tokens are text.
          **kept: What is kept of all layers.
        """
        read = self.read + new.sum(axis=1, dtype=jnp.int32)
        length = self.length + new.shape[1]
        return self.replace(mask=mask, read=read, length=length, **kept)


def empty_cache(
    shape: tuple[int, int, int, int],
    length: int | None,
    dtype: Dtype,
    *,
    window: int | None = None,
    sinks: int = 0,
) -> Cache:
    """Makes a cache that has read nothing.

    Args:
      shape: Layers, texts, heads of keys, width of a head.
      length: Number of tokens that it has room for; None with a window.
      dtype: Floating type of keys and values, or int8, which keeps integers and, in float32, a
        scale for each head and token.
      window: Number of last tokens that are kept; None for all.
      sinks: Number of first tokens that are kept beside the window.

    Raises:
      ValueError: Neither length nor window or both, a window below 1, sinks below 0 or without a
        window, or another type.
    """
    if (length is None) == (window is None):
        raise ValueError(f"a cache has a length or a window, got {length=} and {window=}")
    if (window is not None and window < 1) or sinks < 0 or (sinks and window is None):
        raise ValueError(
            f"a cache's window is at least 1 and its sinks at least 0, got {window=} and {sinks=}"
        )
    kind = jnp.dtype(dtype)
    if kind != jnp.int8 and not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"a cache has dtype={kind}, expected a floating type or int8")
    layers, batch, *heads = shape
    slots = length if window is None else window + sinks
    full = (layers, batch, slots, *heads)

    def empty() -> Any:
        if kind != jnp.int8:
            return jnp.zeros(full, dtype)
        return Quantised(jnp.zeros(full, jnp.int8), jnp.zeros((*full[:-1], 1), jnp.float32))

    return Cache(
        empty(),
        empty(),
        jnp.zeros((batch, slots), bool),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros((), jnp.int32),
        window,
        sinks,
    )
