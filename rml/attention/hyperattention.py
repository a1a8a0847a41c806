"""Attention in near-linear time by sorting and sampling (HyperAttention).

Insu Han, Rajesh Jayaram, Amin Karbasi, Vahab Mirrokni, David P. Woodruff, Amir Zandieh:
HyperAttention: Long-context Attention in Near-Linear Time, arXiv:2310.05869.

1. Queries and keys are sorted by their sides of random hyperplanes (`rml.attention.sort_lsh`).
   Each block of sorted queries attends exactly to the block of keys at its place: large entries.
2. All other keys are estimated from one sample of keys, each of which stands for many.

Causal attention is made of halves: both are causal themselves, and the second half attends to all
of the first, as above. It is not invariant to a longer text: queries are sorted among themselves,
so that a later query moves the borders of blocks, though none ever reads a later key.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from rml.attention.sort_lsh import Order, hyperplanes, sorted_order
from rml.errors import unknown
from rml.ops.attention_parts import Part, Visible, attend_part, merge_parts
from rml.ops.blocked_attention import attend_in_blocks

Sampling = Literal["uniform", "value_norm"]


class Settings(NamedTuple):
    """What decides how much of the attention is computed.

    Attributes:
      planes: Number of hyperplanes that sort; 2^planes buckets. 0 for samples alone, without
        sorted blocks: the simple baseline.
      block: Keys of a block, to which a query attends exactly.
      samples: Keys that stand for all others; 0 for none.
      least: Longest text, in keys, that is attended to exactly.
      sampling: "uniform", or "value_norm": with probability proportional to |value|². The second
        is the paper's other estimator as its reviews describe it; the authors' code has the first.
      order: Of the buckets, see `sorted_order`.
      overlap: Whether a block of queries also attends to half a block of keys on either side.
    """

    planes: int = 7
    block: int = 256
    samples: int = 256
    least: int = 4096
    sampling: Sampling = "uniform"
    order: Order = "gray"
    overlap: bool = False


def hyper_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    rng: Key[Array, ""],
    settings: Settings = Settings(),  # noqa: B008
    scale: float | None = None,
) -> Part:
    """Approximates softmax attention; exact up to `least` keys.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys; g divides h.
      value: Values.
      visible: Padding and causality; causal attention takes as many queries as keys.
      rng: Random key of hyperplanes and samples.
      settings: How much is computed.
      scale: Factor of the logits; k^-1/2 by default.

    Returns:
      Output [b, h, t, v] and estimated log-sum-exp [b, h, t], float32 or wider.

    Raises:
      ValueError: If a setting or a shape is not as described.

    Source: arXiv:2310.05869, algorithms 1, 3 and 4, in the form of the authors' code
    (insuhan/hyper-attn); keys that fill up the last block are masked here, not there.
    """
    check_settings(settings)
    b, h, t, k = query.shape
    g, s = key.shape[1:3]
    if h % g:
        raise ValueError(f"{g} heads of keys must divide {h} heads of queries")
    visible.require_whole("hyper_attention")
    if visible.causal and t != s:
        raise ValueError(f"causal attention takes as many queries as keys, got {t} and {s}")
    scale = k**-0.5 if scale is None else scale
    if s <= settings.least:
        return attend_in_blocks(query, key, value, visible, scale=scale)
    here = jnp.ones((b, s), bool) if visible.keys is None else jnp.asarray(visible.keys)
    grouped = query.reshape(b, g, h // g, t, k)
    of_planes, of_samples = jax.random.split(rng)
    planes = hyperplanes(of_planes, settings.planes, k) if settings.planes else None
    if visible.causal:

        def draw(level: int, value: Array, here: Array) -> Samples:
            return draw_samples(jax.random.fold_in(of_samples, level), value, here, settings)

        part = causal_part(grouped, key, value, here, planes, draw, settings, scale)
    else:
        drawn = draw_samples(of_samples, value, here[:, None], settings)
        part = sorted_part(grouped, key, value, here[:, None], planes, drawn, settings, scale)
    return Part(part.out.reshape(b, h, t, -1), part.lse.reshape(b, h, t))


def check_settings(settings: Settings) -> None:
    """Raises a ValueError that names the setting that is out of its range."""
    for name, least in (("block", 1), ("samples", int(not settings.planes)), ("least", 0)):
        if (value := getattr(settings, name)) < least:
            raise ValueError(f"{name}={value}, expected at least {least}")
    if settings.sampling not in ("uniform", "value_norm"):
        raise unknown("sampling", settings.sampling, ("uniform", "value_norm"))
    if settings.order not in ("gray", "authors"):
        raise unknown("order of buckets", settings.order, ("gray", "authors"))
    if settings.overlap and settings.block % 2:
        raise ValueError(f"block={settings.block}, expected an even number where blocks overlap")


class Samples(NamedTuple):
    """Keys that stand for others.

    Attributes:
      chosen: [..., m], which keys.
      log_weight: [..., m], logarithm of how many keys each stands for; -inf where there are none.
    """

    chosen: Int[Array, "*b m"]
    log_weight: Float[Array, "*b m"]


def draw_samples(
    rng: Key[Array, ""],
    value: Float[Array, "*b s v"],
    here: Bool[Array, "*#b s"],
    settings: Settings,
) -> Samples:
    """Draws keys with replacement, one sample for all queries of a head.

    Args:
      rng: Random key.
      value: Values of the keys, whose norms decide where `settings.sampling` says so.
      here: Which keys are there rather than padding.
      settings: Number of samples, and how they are drawn.

    Returns:
      The samples. A sum over keys is estimated without bias by that over samples, each times its
      weight 1 / (m p).
    """
    here = jnp.broadcast_to(here, value.shape[:-1])
    m = settings.samples
    if not m:
        none = jnp.zeros((*here.shape[:-1], 0))
        return Samples(none.astype(jnp.int32), none)
    if settings.sampling == "uniform":
        share = here.astype(jnp.float32)
    else:
        share = jnp.where(here, jnp.sum(jnp.square(value.astype(jnp.float32)), axis=-1), 0.0)
    share = lax.stop_gradient(share)
    upto = jnp.cumsum(share, axis=-1)
    total = upto[..., -1:]
    drawn = jax.random.uniform(rng, (*upto.shape[:-1], m)) * total

    def find(upto: Array, drawn: Array) -> Array:
        return jnp.searchsorted(upto, drawn, side="right")

    flat = jax.vmap(find)(upto.reshape(-1, upto.shape[-1]), drawn.reshape(-1, m))
    index = jnp.minimum(flat.reshape(drawn.shape), value.shape[-2] - 1)
    p = jnp.take_along_axis(share, index, axis=-1) / jnp.where(total > 0, total, 1.0)
    weight = jnp.where(p > 0, -jnp.log(jnp.where(p > 0, p, 1.0) * m), -jnp.inf)
    return Samples(index, weight)


def sorted_part(
    query: Float[Array, "*b r t k"],
    key: Float[Array, "*b s k"],
    value: Float[Array, "*b s v"],
    here: Bool[Array, "*#b s"],
    planes: Float[Array, "p k"] | None,
    samples: Samples | None,
    settings: Settings,
    scale: float,
) -> Part:
    """Attends to the block of keys beside each block of sorted queries, and to samples of others.

    Args:
      query: Queries, r heads for each head of keys.
      key: Keys.
      value: Values.
      here: Which keys are there rather than padding.
      planes: Normals of the hyperplanes that sort; None for samples alone.
      samples: Samples of keys, of `draw_samples`; those in a query's own block do not count.
      settings: Size, overlap and order of blocks.
      scale: Factor of the logits.

    Returns:
      The part of all keys, estimated, in the order of the queries.
    """
    if planes is None:
        assert samples is not None
        return sampled_part(query, key, value, samples, scale)
    t, s = query.shape[-2], key.shape[-2]
    here = jnp.broadcast_to(here, key.shape[:-1])
    of_queries = sorted_order(query, planes, order=settings.order)
    of_keys = sorted_order(key, planes, here, order=settings.order)
    back = jnp.argsort(of_queries, axis=-1)
    place = jnp.argsort(of_keys, axis=-1)  # of a key among the sorted ones
    blocks = -(-s // settings.block)
    rows = -(-t // blocks)
    query = _permuted(query, of_queries, back)
    query = _in_blocks(query, blocks, rows)
    keys = _windows(_permuted(key, of_keys, place), settings, blocks)
    values = _windows(_permuted(value, of_keys, place), settings, blocks)
    there = _windows(jnp.take_along_axis(here, of_keys, axis=-1)[..., None], settings, blocks)
    weights = jnp.where(there[..., 0], 0.0, -jnp.inf)
    half = settings.block // 2 if settings.overlap else 0
    if samples is not None and samples.chosen.shape[-1]:
        index = samples.chosen
        sampled = jnp.take_along_axis(place, index, axis=-1)
        first = jnp.arange(blocks)[:, None] * settings.block
        own = (sampled[..., None, :] >= first - half) & (
            sampled[..., None, :] < first + settings.block + half
        )
        of_samples = jnp.where(own, -jnp.inf, samples.log_weight[..., None, :])
        weights = jnp.concatenate([weights, of_samples], axis=-1)

        def with_samples(x: Array, windows: Array) -> Array:
            drawn = jnp.take_along_axis(x, index[..., None], axis=-2)[..., None, :, :]
            drawn = jnp.broadcast_to(drawn, (*windows.shape[:-2], *drawn.shape[-2:]))
            return jnp.concatenate([windows, drawn], axis=-2)

        keys, values = with_samples(key, keys), with_samples(value, values)

    @jax.checkpoint
    def of_block(block: tuple[Array, ...]) -> Part:
        query, keys, values, weights = block
        return attend_part(
            query,
            keys[..., None, :, :],
            values[..., None, :, :],
            scale=scale,
            log_weights=weights[..., None, None, :],
        )

    by_block = [jnp.moveaxis(x, -3, 0) for x in (query, keys, values)]
    part = lax.map(of_block, (*by_block, jnp.moveaxis(weights, -2, 0)))
    out = jnp.moveaxis(part.out, 0, -3)
    lse = jnp.moveaxis(part.lse, 0, -2)
    out = out.reshape(*out.shape[:-3], -1, out.shape[-1])[..., :t, :]
    lse = lse.reshape(*lse.shape[:-2], -1)[..., :t]
    return Part(
        _permuted(out, back, of_queries),
        _permuted(lse[..., None], back, of_queries)[..., 0],
    )


def sampled_part(
    query: Float[Array, "*b r t k"],
    key: Float[Array, "*b s k"],
    value: Float[Array, "*b s v"],
    samples: Samples,
    scale: float,
) -> Part:
    """Attends to samples alone, each of which stands for many keys.

    Args:
      query: Queries, r heads for each head of keys.
      key: Keys.
      value: Values.
      samples: Samples of keys, of `draw_samples`.
      scale: Factor of the logits.

    Returns:
      The part of all keys, estimated.
    """
    key, value = (
        jnp.take_along_axis(x, samples.chosen[..., None], axis=-2)[..., None, :, :]
        for x in (key, value)
    )
    weights = samples.log_weight[..., None, None, :]
    return attend_part(query, key, value, scale=scale, log_weights=weights)


def causal_part(
    query: Float[Array, "b g r t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    here: Bool[Array, "b t"],
    planes: Float[Array, "p k"] | None,
    draw: Callable[[int, Array, Array], Samples],
    settings: Settings,
    scale: float,
) -> Part:
    """Attends exactly and causally within the smallest pieces, then to what precedes second halves.

    Args:
      query: Queries, r heads for each head of keys.
      key: Keys.
      value: Values.
      here: Which keys are there rather than padding.
      planes: Normals of the hyperplanes that sort; None for samples alone.
      draw: Of a level (0 halves the text), the values [pieces, b, g, n, v] of its first halves and
        which of them are there, the samples.
      settings: Longest piece; size, overlap and order of blocks.
      scale: Factor of the logits.

    Returns:
      The part of all keys up to each query.
    """
    b, g, r, t, _ = query.shape
    levels = 0
    while -(-t // 2**levels) > max(settings.least, 1):
        levels += 1
    parts = 2**levels
    short = -t % parts
    query = jnp.pad(query, [(0, 0)] * 3 + [(0, short), (0, 0)])
    key, value = (jnp.pad(x, [(0, 0)] * 2 + [(0, short), (0, 0)]) for x in (key, value))
    here = jnp.pad(jnp.broadcast_to(here[:, None], (b, g, t)), [(0, 0)] * 2 + [(0, short)])

    def cut(x: Array, pieces: int, axis: int) -> Array:
        return x.reshape(*x.shape[:axis], pieces, -1, *x.shape[axis + 1 :])

    # Pieces beside the batch: [pieces, b, g, ...].
    def pieces_of(x: Array, pieces: int, axis: int) -> Array:
        return jnp.moveaxis(cut(x, pieces, axis), axis, 0)

    def merged(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    q, k, v = pieces_of(query, parts, 3), pieces_of(key, parts, 2), pieces_of(value, parts, 2)
    seen = pieces_of(here, parts, 2)
    flat = attend_in_blocks(
        q.reshape(parts * b * g, r, *q.shape[4:]),
        k.reshape(parts * b * g, 1, *k.shape[3:]),
        v.reshape(parts * b * g, 1, *v.shape[3:]),
        Visible(seen.reshape(parts * b * g, -1), causal=True),
        scale=scale,
    )
    out = merged(flat.out.reshape(parts, b, g, r, *flat.out.shape[2:]), 3)
    lse = merged(flat.lse.reshape(parts, b, g, r, -1), 3)
    for level in range(levels):
        pieces = 2 ** (level + 1)  # halves
        q, k, v = (
            pieces_of(query, pieces, 3),
            pieces_of(key, pieces, 2),
            pieces_of(value, pieces, 2),
        )
        seen = pieces_of(here, pieces, 2)
        drawn = draw(level, v[::2], seen[::2])
        before = sorted_part(q[1::2], k[::2], v[::2], seen[::2], planes, drawn, settings, scale)
        outs, lses = pieces_of(out, pieces, 3), pieces_of(lse, pieces, 3)
        second = merge_parts(Part(outs[1::2], lses[1::2]), before)
        out = merged(outs.at[1::2].set(second.out), 3)
        lse = merged(lses.at[1::2].set(second.lse), 3)
    return Part(out[..., :t, :], lse[..., :t])


def _in_blocks(x: Array, blocks: int, size: int) -> Array:
    """[..., n, d] as [..., blocks, size, d], filled up with zeros."""
    short = blocks * size - x.shape[-2]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, short), (0, 0)])
    return x.reshape(*x.shape[:-2], blocks, size, x.shape[-1])


def _windows(x: Array, settings: Settings, blocks: int) -> Array:
    """The sorted keys to which each block of queries attends, [..., blocks, width, d]."""
    if not settings.overlap:
        return _in_blocks(x, blocks, settings.block)
    half = settings.block // 2
    halves = _in_blocks(x, 2 * blocks, half)
    edge = [(0, 0)] * (halves.ndim - 3) + [(1, 1), (0, 0), (0, 0)]
    halves = jnp.pad(halves, edge)
    last = 2 * blocks - 1
    shifted = [halves[..., i : i + last : 2, :, :] for i in range(4)]
    return jnp.concatenate(shifted, axis=-2)


@jax.custom_vjp
def _permuted(x: Array, order: Array, inverse: Array) -> Array:
    """Rows of `x` in another order; the gradient is permuted back rather than scattered."""
    del inverse
    return jnp.take_along_axis(x, order[..., None], axis=-2)


def _permuted_forward(x: Array, order: Array, inverse: Array) -> tuple[Array, tuple]:
    return _permuted(x, order, inverse), (order, inverse)


def _permuted_backward(kept: tuple, cotangent: Array) -> tuple:
    order, inverse = kept
    return _permuted(cotangent, inverse, order), None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)


def heavy_mask(
    query: Float[Array, "*b t k"],
    key: Float[Array, "*b s k"],
    planes: Float[Array, "p k"],
    settings: Settings = Settings(),  # noqa: B008
) -> Bool[Array, "*b t s"]:
    """Which keys a query attends to exactly; quadratic, for tests and figures."""
    blocks = -(-key.shape[-2] // settings.block)
    rows = -(-query.shape[-2] // blocks)
    places = [
        jnp.argsort(sorted_order(x, planes, order=settings.order), axis=-1) for x in (query, key)
    ]
    first = (places[0] // rows * settings.block)[..., None]
    half = settings.block // 2 if settings.overlap else 0
    place = places[1][..., None, :]
    return (place >= first - half) & (place < first + settings.block + half)


class Hardness(NamedTuple):
    """The two numbers of which the paper's guarantee speaks.

    Attributes:
      alpha: n times the largest squared norm of a column of the attention matrix; 1 for uniform
        attention of n queries to n keys, n² where all of them attend to one key alone.
      kappa: Largest over smallest sum of a row's exponentials that are not in the mask.
    """

    alpha: Float[Array, "*b"]
    kappa: Float[Array, "*b"]


def hardness(
    query: Float[Array, "*b t k"],
    key: Float[Array, "*b s k"],
    heavy: Bool[Array, "*#b t s"] | None = None,
    *,
    scale: float | None = None,
) -> Hardness:
    """How hard an attention matrix is to approximate; quadratic, for analysis.

    Args:
      query: Queries.
      key: Keys.
      heavy: Entries that are computed exactly, of `heavy_mask`; none by default.
      scale: Factor of the logits; k^-1/2 by default.

    Returns:
      The two numbers.

    Source: arXiv:2310.05869, the parameters alpha and kappa of theorem 1.
    """
    logits = jnp.einsum("...tk,...sk->...ts", query, key).astype(jnp.float32)
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
    columns = jnp.sum(jnp.square(jax.nn.softmax(logits, axis=-1)), axis=-2)
    rest = logits if heavy is None else jnp.where(heavy, -jnp.inf, logits)
    rows = jax.nn.logsumexp(rest, axis=-1)
    spread = jnp.max(rows, axis=-1) - jnp.min(rows, axis=-1)
    return Hardness(query.shape[-2] * jnp.max(columns, axis=-1), jnp.exp(spread))
