"""S2-attention: every head attends to its own shard of the context, all heads to the whole of it.

Lin et al., Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention
Heads, arXiv:2407.17678. A text is cut into blocks. A query sees the last `local` of them, and of
those before every `stride`-th one, another residue in each head. What a head has left behind it
never reads again, so that its cache keeps a part of the text.

The pattern is that of the authors' code (github.com/linxihui/dkernel): residues move with the heads
of keys, their step by the number of heads of queries. Its relative pattern of attention in both
directions is the same in all heads. Here `shards` says how many heads differ; the check that they
cover the context together is ours.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rml.errors import UserError
from rml.ops.attention_parts import OfBlocks, OfPlaces, Visible, check_attention
from rml.ops.block_sparse import block_sparse_attention

Pattern = Bool[np.ndarray, "h q n"]


def shard_pattern(
    blocks: int,
    *,
    heads: int,
    shards: int,
    local: int,
    stride: int,
    right: int | None = None,
    offset: int = 0,
    dense_heads: int = 0,
    causal: bool = True,
) -> Pattern:
    """Marks the blocks of keys that each head visits for each block of queries.

    With shard e = i // (heads / shards) of head i and step = max(1, stride // heads), block q sees
    block n if n <= q and either q - n < local or (n + e step + offset) mod stride = 0. Attention in
    both directions counts from the window instead: with x = max(0, q - n - local + 1) +
    max(0, n - q - right + 1) it sees block n if x mod stride = 0, in all heads.

    Args:
      blocks: Number of blocks of the text.
      heads: Number of heads of queries.
      shards: Number of different shards, a divisor of `heads`: as many as heads of keys for a small
        cache, 1 for the same pattern in all heads.
      local: Number of last blocks that all heads see, the query's own included.
      stride: Distance of the blocks that a head sees beyond them.
      right: Number of next blocks that all heads see, the query's own included, where attention is
        not causal; as many as last ones if not given.
      offset: Moves the residues of all heads.
      dense_heads: Number of last shards that see everything.
      causal: Whether a query sees no later block.

    Raises:
      UserError: A number is out of its range.

    Example:
      >>> shard_pattern(4, heads=2, shards=2, local=1, stride=2)[:, 3].astype(int)
      array([[1, 0, 1, 1],
             [0, 1, 0, 1]])
    """
    for name, value, least in (
        ("blocks", blocks, 1), ("heads", heads, 1), ("local", local, 1), ("stride", stride, 1),
        ("offset", offset, 0),
    ):  # fmt: skip
        if value < least:
            raise UserError(f"{name} is {value}, expected at least {least}")
    if right is not None and (causal or right < 1):
        wanted = "none of causal attention" if causal else "at least 1"
        raise UserError(f"right is {right}, expected {wanted}")
    if shards < 1 or heads % shards:
        raise UserError(f"shards is {shards}, expected a divisor of {heads} heads")
    if not 0 <= dense_heads <= shards:
        raise UserError(f"dense_heads is {dense_heads}, expected 0 to shards={shards}")
    shard = np.arange(heads) // (heads // shards)
    ahead = np.arange(blocks)[:, None] - np.arange(blocks)
    after = np.maximum(0, 1 - ahead - (local if right is None else right))
    beyond = np.maximum(0, ahead - local + 1) + after
    if causal:
        step = max(1, stride // heads)
        residue = shard[:, None] * step + np.arange(blocks) + offset
        seen = (residue % stride == 0)[:, None] | (beyond == 0)
    else:
        seen = np.broadcast_to(beyond % stride == 0, (heads, blocks, blocks))
    seen = seen | (shard >= shards - dense_heads)[:, None, None]
    return seen & (ahead >= 0) if causal else seen


def work(pattern: Pattern) -> float:
    """Computes the share of causal pairs of blocks that a causal pattern visits, over heads."""
    return float(pattern.sum() / np.tril(np.ones_like(pattern)).sum())


def coverage(pattern: Pattern, *, causal: bool = True) -> float:
    """Computes the share of pairs of blocks, up to the diagonal if causal, that some head sees."""
    seen = np.asarray(pattern.any(axis=0))
    return float(seen[_asked(pattern, causal)].mean())


def check_coverage(pattern: Pattern, *, causal: bool = True) -> None:
    """Refuses a pattern whose heads together leave out a part of the context.

    Raises:
      UserError: Names the first pair of blocks that no head sees, and how many there are.
    """
    missing = np.argwhere(_asked(pattern, causal) & ~pattern.any(axis=0))
    if len(missing):
        q, n = missing[0]
        raise UserError(
            f"no head of {len(pattern)} lets block {q} of queries see block {n} of keys, nor "
            f"{len(missing) - 1} further pairs; expected heads that cover the context together, as "
            "stride <= shards does"
        )


def _asked(pattern: Pattern, causal: bool) -> Bool[np.ndarray, "q n"]:
    whole = np.ones(pattern.shape[1:], bool)
    return np.tril(whole) if causal else whole


def s2_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    rng: Key[Array, ""] | None = None,
    scale: float | None = None,
    block: int = 64,
    local: int = 16,
    stride: int = 8,
    right: int | None = None,
    offset: int = 0,
    shards: int | None = None,
    dense_heads: int = 0,
    covering: bool = True,
) -> Float[Array, "b h t v"]:
    """Attends by the blocks of `shard_pattern`; work and time follow the pattern.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys.
      value: Values.
      visible: Padding and causality.
      rng: Accepted for uniformity; nothing is drawn.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      block: Queries and keys of one block; the defaults of it, `local` and `stride` are Phi-3's.
      local: Number of last blocks that all heads see.
      stride: Distance of the blocks that a head sees beyond them.
      right: Number of next blocks that all heads see if not causal; as many as last ones if not
        given.
      offset: Moves the residues of all heads.
      shards: Number of different shards; as many as heads of keys if not given.
      dense_heads: Number of last shards that see everything.
      covering: Whether heads must cover the context together if causal, as the paper's do.

    Returns:
      Output, float32 or wider.

    Raises:
      UserError: A number is out of its range, or heads do not cover the context together.
      ValueError: There is a window or a start, or a shape or the scale is not as described.
    """
    del rng
    check_attention(query, key, value, visible, scale)
    visible.require_whole("s2_attention")
    heads, t = query.shape[1:3]
    if block < 1:
        raise UserError(f"block is {block}, expected at least 1")
    pattern = shard_pattern(
        -(-t // block), heads=heads, shards=key.shape[1] if shards is None else shards,
        local=local, stride=stride, right=right, offset=offset, dense_heads=dense_heads,
        causal=visible.causal,
    )  # fmt: skip
    if covering and visible.causal:
        check_coverage(pattern)
    return block_sparse_attention(query, key, value, pattern, visible, block=block, scale=scale).out


def pattern_bias(pattern: Pattern, block: int) -> OfPlaces:
    """Turns a pattern into the bias of `rml.models.attention.attend`: 0, or the least number.

    Of short texts a masked matrix is faster than blocks, and a decoder with a full cache can use it
    token by token.

    Args:
      pattern: Blocks of keys that each head sees.
      block: Queries and keys of one block.

    Raises:
      ValueError: Where it is asked for more queries or keys than the pattern has places for, or
        `attend` is given it together with a window that moves.
    """
    places = tuple(size * block for size in pattern.shape[1:])

    def bias(queries: Int[Array, " t"], keys: Int[Array, " s"]) -> Float[Array, "h t s"]:
        asked = len(queries), len(keys)
        if asked[0] > places[0] or asked[1] > places[1]:
            raise ValueError(
                f"{asked[0]} queries and {asked[1]} keys by a pattern of shape {pattern.shape} of "
                f"blocks of {block}, expected at most {places[0]} and {places[1]}"
            )
        seen = jnp.asarray(pattern)[:, queries // block][:, :, keys // block]
        return jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)

    return OfBlocks(bias)
