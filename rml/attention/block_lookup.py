"""What a memory of blocks looks up: its settings, and what it keeps to find blocks by.

Source: ActQKV (Xiao et al., arXiv:2502.13542) for probes, scores and budgets, see
`rml.attention.actqkv`; `rml.attention.block_memory` attends to what is found.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.attention.actqkv import (
    METRICS,
    Found,
    Moments,
    Weighting,
    no_moments,
    probe_query,
    retrieve,
    update_moments,
    weighting_of,
)
from rml.errors import unknown


class MemorySettings(NamedTuple):
    """What a memory attends to.

    Attributes:
      block: Tokens of a block.
      blocks: Number of blocks that a layer looks up, on average over the layers where they differ.
        With none, first and near tokens are left, as in LM-Infinite (Han et al., 2023,
        arXiv:2308.16137), or with `clamped=False` as in `rml.models.caches.Cache` with a window.
      sinks: First tokens, which are always attended to.
      window: Nearest tokens, which are always attended to.
      top: Keys of a block that make its representative.
      weighting: How a call's queries are weighed, see `rml.attention.actqkv.probe_query`.
      metric: How like a block and a probe are, a name in `rml.attention.actqkv.METRICS`.
      per_head: Whether each head of keys looks up blocks of its own, rather than all together.
      dynamic: Whether layers get blocks in proportion to their information.
      least: Blocks that a layer then has at least; at most it has 2 `blocks` - `least`.
      temperature: Temperature of the scores that give the information.
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
      moments: [b, p, c], moments of the queries.
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


def room_for_blocks(settings: MemorySettings, length: int) -> int:
    """Counts the whole blocks that a memory of a length has room for.

    Args:
      settings: What is attended to.
      length: Number of tokens that the memory has room for.

    Raises:
      ValueError: A setting is out of range, or there is no room for the blocks that are looked up.
      UserError: The weighting or the metric is unknown.
    """
    s = settings
    weighting_of(s.weighting)
    if s.metric not in METRICS:
        raise unknown("metric", s.metric, METRICS)
    blocks = (length - s.sinks) // s.block if s.block > 0 else 0
    if min(s.block, s.window, s.top) < 1 or min(s.blocks, s.sinks) < 0 or s.temperature <= 0:
        raise ValueError(
            f"{s}, expected block, window and top of at least 1, blocks and sinks of at least 0 "
            "and a temperature above 0"
        )
    if s.dynamic and not 0 <= s.least <= s.blocks:
        raise ValueError(f"least={s.least}, expected 0 to blocks={s.blocks}")
    if blocks < s.most:
        raise ValueError(
            f"length={length} has room for {blocks} blocks of {s.block} after {s.sinks} sinks, "
            f"expected at least the {s.most} that a layer looks up"
        )
    return blocks


def empty_lookup(
    settings: MemorySettings,
    *,
    layers: int,
    batch: int,
    length: int,
    heads: int,
    kv_heads: int,
    width: int,
) -> Lookup:
    """Makes the `Lookup` of a memory that has read nothing, with a leading axis of layers.

    Args:
      settings: What is attended to.
      layers: Number of layers.
      batch: Number of texts.
      length: Number of tokens that the memory has room for.
      heads: Number of heads of queries.
      kv_heads: Number of heads of keys.
      width: Width of a head.

    Raises:
      ValueError: As `room_for_blocks`.
      UserError: As `room_for_blocks`.
    """
    blocks = room_for_blocks(settings, length)
    parts = kv_heads if settings.per_head else 1
    return Lookup(
        jnp.zeros((layers, batch, heads, length), jnp.float32),
        jnp.zeros((layers, batch, blocks, heads, width), jnp.float32),
        no_moments(layers, batch, parts, heads // parts * width),
        jnp.zeros((layers, batch), jnp.float32),
        jnp.full((layers, batch), settings.blocks, jnp.int32),
        jnp.full((layers, batch, parts, settings.most), -1, jnp.int32),
    )


def look_up(
    lookup: Lookup,
    query: Float[Array, "b t h k"],
    text: Bool[Array, "b s"],
    new: Bool[Array, "b t"],
    whole: Int[Array, ""],
    *,
    settings: MemorySettings,
    received: Float[Array, "b h t"] | None = None,
) -> tuple[Found, Moments]:
    """Finds blocks for the queries of a call.

    Args:
      lookup: What one layer finds blocks by.
      query: Queries of the new tokens, rotated as at the window's distance.
      text: Which slots of the memory hold text.
      new: Which of the new tokens are text.
      whole: Number of blocks that may be looked up.
      settings: What is attended to.
      received: Attention that each new token received, see `window_attention`; for the weighting
        "attention" alone.

    Returns:
      Blocks [b, p, most] with their scores, and the moments with these queries.
    """
    s, (b, t, h, k) = settings, query.shape
    parts = lookup.moments.mean.shape[1]
    queries = query.reshape(b, t, parts, -1).swapaxes(1, 2)
    representatives = lookup.representatives.reshape(b, -1, parts, h // parts * k)
    blocks = representatives.shape[1]
    kept = text[:, s.sinks : s.sinks + blocks * s.block].reshape(b, blocks, s.block).any(-1)
    there = kept & (jnp.arange(blocks) < whole)

    got = None
    if received is not None:
        got = received.reshape(b, parts, h // parts, t).sum(axis=2)

    def of_part(
        moments: Moments, query: Array, got: Any, new: Array, representatives: Array, there: Array
    ) -> tuple[Found, Moments]:
        moments = update_moments(moments, query, new)
        probe = probe_query(query, moments, new, weighting=s.weighting, received=got)
        found = retrieve(
            representatives, probe, there,
            count=s.most, metric=s.metric, temperature=s.temperature,
        )  # fmt: skip
        return found, moments

    of_text = jax.vmap(of_part, (0, 0, 0, None, 1, None))
    return jax.vmap(of_text)(lookup.moments, queries, got, new, representatives, there)
