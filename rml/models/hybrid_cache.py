"""A cache of a decoder of which some layers attend by a pattern of blocks and the others to all."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from rml.errors import UserError
from rml.models.caches import Cache
from rml.models.layers import Dtype
from rml.models.llama import Llama
from rml.models.sharded_cache import ShardedCache, sharded_cache
from rml.ops.attention_parts import Visible


class HybridCache(ShardedCache):
    """What a `ShardedCache` keeps, of the layers with its pattern; every token of the others.

    Attributes:
      whole: Keys and values of the layers that see all, [layers, b, slots, g, k] each; arrays, or
        `Quantised`. `key` and `value` are of the layers with the pattern.
      turn: The number of the layer that attends.
      kinds: Whether each layer has the pattern.
    """

    whole: Any = None
    turn: Any = None
    kinds: tuple[bool, ...] = struct.field(pytree_node=False, default=())

    def of_layer(self, number: Int[Array, ""]) -> "HybridCache":
        """Returns the cache with the number of a layer, which takes its part when it attends."""
        return self.replace(turn=number)

    def attend(
        self,
        attention: Callable[..., Any],
        query: Array,
        key: Array,
        value: Array,
        visible: Visible,
        rotate: Callable[..., Array],
    ) -> tuple[Array, Array | None, Any]:
        """Attends as the layer's kind does, without weights, see `Cache.attend`."""
        kinds = np.array(self.kinds)
        among = np.where(kinds, kinds.cumsum(), (~kinds).cumsum()) - 1
        by_pattern, number = jnp.array(kinds)[self.turn], jnp.array(among)[self.turn]

        def by(kind: type[Cache], stored: Any) -> Callable[[], Array]:
            def output() -> Array:
                kept = jax.tree.map(lambda leaf: leaf[number], stored)
                own = self.replace(key=kept[0], value=kept[1])
                found = kind.attend(own, attention, query, key, value, visible, rotate)
                return found[0].astype(value.dtype)

            return output

        y = jax.lax.cond(
            by_pattern, by(ShardedCache, (self.key, self.value)), by(Cache, self.whole)
        )
        return y, None, (rotate(key), value)

    def after(self, added: Any, mask: Array, new: Bool[Array, "b t"]) -> "HybridCache":
        """Returns the cache with further tokens, see `Cache.after`."""
        kinds = np.array(self.kinds)
        found: Any = super().after(tuple(own[kinds] for own in added), mask, new)
        whole = tuple(
            self.extended(old, own[~kinds], axis=2)[1]
            for old, own in zip(self.whole, added, strict=True)
        )
        return found.replace(whole=whole)


def hybrid_cache(
    module: Llama,
    batch: int,
    pattern: Bool[np.ndarray, "h n n"],
    *,
    sharded: Sequence[bool],
    block: int,
    dtype: Dtype = None,
) -> HybridCache:
    """Makes an empty cache for a decoder some of whose layers attend by a pattern of blocks.

    Layers without the pattern attend as the module says, which has no window, and keep every token.

    Args:
      module: The decoder.
      batch: Number of texts.
      pattern: Blocks of keys that each head sees, of as many blocks as it has room for.
      sharded: Whether each layer attends by the pattern.
      block: Number of tokens of a block.
      dtype: Type of keys and values, see `rml.models.caches.empty_cache`.

    Raises:
      UserError: `sharded` has not an entry for each layer, or all are alike; or as `sharded_cache`.

    Source: Lin et al., arXiv:2407.17678, which puts some dense layers among those of its pattern.
    """
    kinds = tuple(map(bool, sharded))
    if len(kinds) != module.depth or len(set(kinds)) < 2:
        raise UserError(
            f"sharded is {kinds} for {module.depth} layers, expected an entry for each, of both "
            "kinds"
        )
    few, rest = (module.clone(depth=kinds.count(kind)) for kind in (True, False))
    own = sharded_cache(few, batch, pattern, block=block, dtype=dtype)
    full = rest.init_cache(batch, own.slots, dtype)
    return HybridCache(**vars(own), whole=(full.key, full.value), kinds=kinds)
