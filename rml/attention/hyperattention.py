"""Attention in near-linear time by sorting and sampling (HyperAttention).

Insu Han, Rajesh Jayaram, Amin Karbasi, Vahab Mirrokni, David P. Woodruff, Amir Zandieh:
HyperAttention: Long-context Attention in Near-Linear Time, arXiv:2310.05869.

1. Queries and keys are sorted by their sides of random hyperplanes (`rml.attention.sort_lsh`).
   Each block of sorted queries attends exactly to the block of keys at its place: large entries.
2. All other keys are estimated from one sample of keys, each of which stands for many. With
   `sampling="value_norm"` their values are, and the sums of rows have a sample and bounds of their
   own: the estimator of the paper's algorithms 2 and 3 as we remember them, which is not in the
   authors' code.

Causal attention is made of halves: both are causal themselves, and the second half attends to all
of the first, as above. It is not invariant to a longer text: queries are sorted among themselves,
so that a later query moves the borders of blocks, though none ever reads a later key. Where queries
and keys are the same tokens, queries that are padding come last and move none.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from rml.attention.hyper_samples import (
    HyperSettings,
    Samples,
    bounded_part,
    check_settings,
    draw_samples,
    log_floor,
    sampled_logits,
    sampled_part,
    within,
)
from rml.attention.sort_lsh import hyperplanes, sorted_order
from rml.ops.attention_parts import Part, Visible, attend_part, check_attention, merge_parts
from rml.ops.blocked_attention import attend_in_blocks


def hyper_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    rng: Key[Array, ""],
    settings: HyperSettings = HyperSettings(),  # noqa: B008
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
      scale: Factor of the logits, at least 0; k^-1/2 by default.

    Returns:
      Output [b, h, t, v] and estimated log-sum-exp [b, h, t], float32 or wider.

    Raises:
      ValueError: If a setting, a shape or the scale is not as described.

    Source: the authors' code (insuhan/hyper-attn) of arXiv:2310.05869, where these are algorithms
    1, 3 and 4 as we remember them; keys that fill up the last block are masked here, not there.
    """
    check_settings(settings)
    check_attention(query, key, value, visible, scale)
    b, h, t, k = query.shape
    g, s = key.shape[1:3]
    visible.require_whole("hyper_attention")
    if visible.causal and t != s:
        raise ValueError(f"causal attention takes as many queries as keys, got {t} and {s}")
    scale = k**-0.5 if scale is None else scale
    if s <= settings.least:
        return attend_in_blocks(query, key, value, visible, scale=scale)
    here = jnp.ones((b, s), bool) if visible.keys is None else jnp.asarray(visible.keys)
    rest = here.at[:, : settings.sinks].set(False)  # those that are approximated
    grouped = query.reshape(b, g, h // g, t, k)
    of_planes, of_samples = jax.random.split(rng)
    planes = hyperplanes(of_planes, settings.planes, k) if settings.planes else None
    if visible.causal:

        def draw(level: int, value: Array, here: Array) -> Samples:
            return draw_samples(jax.random.fold_in(of_samples, level), value, here, settings)

        part = causal_part(grouped, key, value, rest, planes, draw, settings, scale, here)
    else:
        asked = here[:, None] if t == s else None  # others are other tokens, all of them there
        rest = rest[:, None]
        drawn = draw_samples(of_samples, value, rest, settings)
        part = sorted_part(grouped, key, value, rest, planes, drawn, settings, scale, asked)
    part = Part(part.out.reshape(b, h, t, -1), part.lse.reshape(b, h, t))
    if not settings.sinks:
        return part
    first = slice(settings.sinks)
    keys = Visible(here[:, first], causal=visible.causal)
    sinks = attend_in_blocks(query, key[:, :, first], value[:, :, first], keys, scale=scale)
    return merge_parts(sinks, part)


def sorted_part(
    query: Float[Array, "*b r t k"],
    key: Float[Array, "*b s k"],
    value: Float[Array, "*b s v"],
    here: Bool[Array, "*#b s"],
    planes: Float[Array, "p k"] | None,
    samples: Samples | None,
    settings: HyperSettings,
    scale: float,
    asked: Bool[Array, "*#b t"] | None = None,
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
      asked: Which queries are there rather than padding; all by default. The others come last.

    Returns:
      The part of all keys, estimated, in the order of the queries.
    """
    here = jnp.broadcast_to(here, key.shape[:-1])
    number = None if asked is None else asked.sum(axis=-1, keepdims=True)
    if planes is None:
        assert samples is not None
        part = sampled_part(query, key, value, samples, scale)
        if samples.row_sums is None:
            return part
        sums, none = samples.row_sums, jnp.full(part.lse.shape, -jnp.inf)
        ordered = query
        if asked is not None:
            order = jnp.argsort(~asked, axis=-1, stable=True)
            ordered = jnp.take_along_axis(query, order[..., None, :, None], axis=-2)
        floor = log_floor(ordered, key, here, sums.rows, settings, scale, number=number)
        logits = sampled_logits(query, key, sums.chosen, scale)
        nothing = Part(jnp.zeros_like(part.out), none)
        settings = settings._replace(cap=float("inf"))  # there is no block to measure it by
        return bounded_part(nothing, part, logits, sums.log_weight, floor, here, settings)
    t, s = query.shape[-2], key.shape[-2]
    seen = None if asked is None else asked[..., None, :]
    of_queries = sorted_order(query, planes, seen, order=settings.order)
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
    first = jnp.arange(blocks)[:, None] * settings.block

    def beyond(chosen: Array, log_weight: Array) -> Array:
        """Weights of samples for each block, [..., blocks, m]; those in it do not count."""
        sampled = jnp.take_along_axis(place, chosen, axis=-1)[..., None, :]
        return jnp.where(within(sampled, first, settings), -jnp.inf, log_weight[..., None, :])

    if samples is not None and samples.row_sums is not None:
        sums = samples.row_sums
        ordered = query.reshape(*query.shape[:-3], blocks * rows, -1)
        count = t if number is None else number
        floor = log_floor(ordered, key, here, sums.rows, settings, scale, place, count, rows)

        @jax.checkpoint
        def bounded(block: tuple[Array, ...]) -> Part:
            query, keys, values, weights, of_values, of_sums = block
            heavy = attend_part(
                query, keys[..., None, :, :], values[..., None, :, :], scale=scale,
                log_weights=weights[..., None, None, :],
            )  # fmt: skip
            light = sampled_part(query, key, value, samples._replace(log_weight=of_values), scale)
            logits = sampled_logits(query, key, sums.chosen, scale)
            return bounded_part(heavy, light, logits, of_sums, floor, here, settings)

        more = (weights, beyond(*samples[:2]), beyond(*sums[:2]))
        return _of_blocks(bounded, (query, keys, values), more, t, back, of_queries)
    if samples is not None and samples.chosen.shape[-1]:
        index = samples.chosen
        weights = jnp.concatenate([weights, beyond(*samples[:2])], axis=-1)

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

    return _of_blocks(of_block, (query, keys, values), (weights,), t, back, of_queries)


def _of_blocks(
    of_block: Callable[[tuple[Array, ...]], Part], arrays: tuple[Array, ...],
    weights: tuple[Array, ...], t: int, back: Array, of_queries: Array,
) -> Part:  # fmt: skip
    """The parts of blocks of arrays [..., blocks, n, d] and weights [..., blocks, n], unsorted."""
    by_block = [jnp.moveaxis(x, -3, 0) for x in arrays]
    part = lax.map(of_block, (*by_block, *(jnp.moveaxis(x, -2, 0) for x in weights)))
    out = jnp.moveaxis(part.out, 0, -3)
    lse = jnp.moveaxis(part.lse, 0, -2)
    out = out.reshape(*out.shape[:-3], -1, out.shape[-1])[..., :t, :]
    lse = lse.reshape(*lse.shape[:-2], -1)[..., :t]
    return Part(
        _permuted(out, back, of_queries),
        _permuted(lse[..., None], back, of_queries)[..., 0],
    )


def causal_part(
    query: Float[Array, "b g r t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    here: Bool[Array, "b t"],
    planes: Float[Array, "p k"] | None,
    draw: Callable[[int, Array, Array], Samples],
    settings: HyperSettings,
    scale: float,
    asked: Bool[Array, "b t"] | None = None,
) -> Part:
    """Attends exactly and causally within the smallest pieces, then to what precedes second halves.

    Args:
      query: Queries, r heads for each head of keys.
      key: Keys.
      value: Values.
      here: Which keys are there rather than padding.
      planes: Normals of the hyperplanes that sort; None for samples alone.
      draw: Function that gives the samples, of a level (0 halves the text), the values
        [pieces, b, g, n, v] of its first halves and which of them are there.
      settings: Longest piece; size, overlap and order of blocks.
      scale: Factor of the logits.
      asked: Which queries are there rather than padding; as keys by default.

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
    asked, here = (
        jnp.broadcast_to(x[:, None], (b, g, t)) for x in (here if asked is None else asked, here)
    )
    # Queries that fill up the last piece are sorted as the zeros that they are, as by the authors.
    asked = jnp.pad(asked, [(0, 0)] * 2 + [(0, short)], constant_values=True)
    here = jnp.pad(here, [(0, 0)] * 2 + [(0, short)])

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
        before = sorted_part(
            q[1::2], k[::2], v[::2], seen[::2], planes, drawn, settings, scale,
            pieces_of(asked, pieces, 2)[1::2],
        )  # fmt: skip
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


def _windows(x: Array, settings: HyperSettings, blocks: int) -> Array:
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
