"""Attention to blocks that a law of distance draws: probabilistic block attention.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441. The abstract says that a law over the distance of blocks decides which block of
keys is likely to take part, and that the lower triangle is kept by reshaping. The laws, the budget,
the weights that make sums unbiased and the pairing of rows are our reading.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rml.errors import UserError, unknown
from rml.ops.attention_parts import OfBlocks, OfPlaces, Part, Visible, check_attention
from rml.ops.block_sparse import block_sparse_attention
from rml.ops.shapes import check_count, check_whole

KINDS = ("harmonic", "geometric", "uniform")
"""How keeping falls with distance Δ: as 1 / (1 + Δ), as γ^Δ, not at all beyond a block's own."""
STEP = 2.0**-23
"""Distance of the numbers that `jax.random.uniform` draws in float32."""


class Law(NamedTuple):
    """A law of distance.

    Attributes:
      kind: One of `KINDS`.
      budget: Number of blocks that the last block of queries keeps on average; with weights, the
        mean that these say, see `keep_probabilities`.
      gamma: Base γ of "geometric".
      reweight: Whether -log p is added to the logits of a kept block, so that numerator and
        denominator of the softmax are unbiased sums.
    """

    kind: str = "harmonic"
    budget: float = 8.0
    gamma: float = 0.9
    reweight: bool = False


def keep_probabilities(
    blocks: int, law: Law, weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " n"]:
    """Computes the probability p(Δ) that a block of keys at each distance is kept.

    p(0) = 1, and p(Δ) = min(1, c f(Δ)) with f of the kind, rounded up to a multiple of 2^-23, so
    that float32 draws have that very chance; c is such that the sum of p over all distances is the
    budget, up to the rounding.

    Args:
      blocks: Number n of blocks of a text; distances are 0 to n - 1.
      law: The law.
      weights: What each distance counts in the sum, 1 if not given. With `causal_weights` the
        budget is the mean over all blocks of queries of a causal text.

    Returns:
      Probabilities, float64; 1 everywhere where the budget is beyond what there is.

    Raises:
      ValueError: `blocks` is no whole number of at least 0.
      UserError: The kind is unknown, the budget is below 1 or γ is not in 0 to 1.
    """
    check_count(0, blocks=blocks)
    if law.kind not in KINDS:
        raise unknown("law", law.kind, KINDS)
    if not law.budget >= 1:
        raise UserError(f"budget is {law.budget}, expected at least 1: a block keeps its own")
    if not 0 < law.gamma < 1:
        raise UserError(f"gamma is {law.gamma}, expected between 0 and 1")
    distance = np.arange(blocks)
    weights = np.ones(blocks) if weights is None else weights
    log_shape = {
        "harmonic": -np.log1p(distance), "geometric": distance * np.log(law.gamma),
        "uniform": np.zeros(blocks),
    }[law.kind]  # fmt: skip

    def kept(log_c: float) -> Float[np.ndarray, " n"]:
        chance = np.exp(np.minimum(0.0, log_c + log_shape))
        # What is too small for a float64 is rounded up as well.
        return np.where(distance == 0, 1.0, np.maximum(1, np.ceil(chance / STEP)) * STEP)

    if law.budget >= weights.sum():
        return np.ones(blocks)
    low, high = -800.0, -float(log_shape.min())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if weights @ kept(middle) < law.budget else (low, middle)
    return kept(high)


def causal_weights(blocks: int) -> Float[np.ndarray, " n"]:
    """Returns the share (n - Δ) / n of a causal text's blocks of queries that see each distance.

    Raises:
      ValueError: `blocks` is no whole number of at least 0.
    """
    check_count(0, blocks=blocks)
    return 1 - np.arange(blocks) / blocks


def paired_rows(blocks: int) -> Int[np.ndarray, "r w 2"]:
    """Lays the lower triangle of blocks out in rows of equal work: block i beside n - 1 - i.

    Args:
      blocks: Number n of blocks.

    Returns:
      Of every row and place the block of queries and the block of keys. Rows have n + 1 places;
      those that the middle row of an odd n does not need are -1.

    Raises:
      ValueError: `blocks` is no whole number of at least 0.

    Example:
      >>> paired_rows(3)[0].tolist()
      [[0, 0], [2, 0], [2, 1], [2, 2]]
    """
    check_count(0, blocks=blocks)
    rows = -(-blocks // 2)
    row, place = np.indices((rows, blocks + 1))
    first = place <= row
    query = np.where(first, row, blocks - 1 - row)
    key = np.where(first, place, place - row - 1)
    alone = ~first & (query == row)  # the middle row is its own partner
    return np.where(alone[..., None], -1, np.stack([query, key], axis=-1))


def draw_pattern(
    rng: Key[Array, ""], keep: Float[np.ndarray, " n"], *, heads: int, causal: bool = True
) -> Bool[Array, "h n n"]:
    """Draws which blocks of keys each block of queries keeps, for each head.

    A causal pattern is drawn in the rows of `paired_rows`, with half as many numbers as the square.
    The same key gives the same pattern on every device: fold the step and the layer into it.

    Args:
      rng: Random key.
      keep: Probability at each distance, of `keep_probabilities`: multiples of `STEP`.
      heads: Number of heads.
      causal: Whether a block sees no later one.
    """
    n = len(keep)
    if not causal:
        distance = np.abs(np.arange(n)[:, None] - np.arange(n))
        return jax.random.uniform(rng, (heads, n, n)) < jnp.asarray(keep[distance], jnp.float32)
    pairs = paired_rows(n)
    query, key = pairs[..., 0], pairs[..., 1]
    chance = np.where(query < 0, 0.0, keep[query - key])
    drawn = jax.random.uniform(rng, (heads, *chance.shape)) < jnp.asarray(chance, jnp.float32)
    # What no pair stands for is written beyond the square, where it is dropped.
    query, key = np.where(query < 0, n, query), np.where(query < 0, n, key)
    return jnp.zeros((heads, n, n), bool).at[:, query, key].set(drawn, mode="drop")


def reweighting(keep: Float[np.ndarray, " n"], block: int) -> OfPlaces:
    """Returns the bias of logits that makes sums over kept blocks unbiased: -log p(distance).

    Args:
      keep: Probability at each distance, of `keep_probabilities`.
      block: Queries and keys of a block.
    """
    # A constant: an array of the program could not enter the derivative of attention in blocks.
    logs = -np.log(keep).astype(np.float32)

    def bias(queries: Int[Array, " t"], keys: Int[Array, " s"]) -> Float[Array, "1 t s"]:
        distance = jnp.abs(queries[:, None] // block - keys // block)
        return jnp.asarray(logs).take(distance, mode="clip")[None]

    return OfBlocks(bias)


def block_law_part(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    rng: Key[Array, ""],
    scale: float | None = None,
    block: int = 64,
    law: Law = Law(),  # noqa: B008
    weights: Float[np.ndarray, " n"] | None = None,
) -> Part:
    """Attends exactly to the blocks that a law draws; work and time follow them.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys.
      value: Values.
      visible: Padding and causality.
      rng: Random key of the blocks.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      block: Queries and keys of one block. The last may be short.
      law: The law.
      weights: See `keep_probabilities`.

    Returns:
      Output and log-sum-exp. With `reweight` the mean of the exponentials of the latter over draws
      is that of exact attention.

    Raises:
      UserError: The law is not as described, or the block is below 1.
      ValueError: There is a window or a start, a shape or the scale is not as described, or the
        block is no whole number.
    """
    check_attention(query, key, value, visible, scale)
    visible.require_whole("block_law")
    keep = keep_probabilities(_blocks(query.shape[2], block), law, weights)
    pattern = draw_pattern(rng, keep, heads=query.shape[1], causal=visible.causal)
    bias = reweighting(keep, block) if law.reweight else None
    return block_sparse_attention(
        query, key, value, pattern, visible, block=block, scale=scale, bias=bias
    )


def block_law_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    visible: Visible = Visible(),  # noqa: B008
    *,
    rng: Key[Array, ""],
    scale: float | None = None,
    block: int = 64,
    law: Law = Law(),  # noqa: B008
) -> Float[Array, "b h t v"]:
    """Returns the output of `block_law_part`; the budget is the mean over blocks of queries.

    Where attention is not causal, blocks on both sides count.
    """
    weights = causal_weights(_blocks(query.shape[2], block))
    if not visible.causal:
        weights[1:] *= 2
    return block_law_part(
        query, key, value, visible, rng=rng, scale=scale, block=block, law=law, weights=weights
    ).out


def _blocks(tokens: int, block: int) -> int:
    """Number of blocks of a text; raises `ValueError` where a block is no number of tokens."""
    check_whole(block=block)
    if block < 1:
        raise UserError(f"block is {block}, expected at least 1")
    return -(-tokens // block)
