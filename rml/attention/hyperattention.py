"""Attention in near-linear time by sorting and sampling (HyperAttention).

Insu Han, Rajesh Jayaram, Amin Karbasi, Vahab Mirrokni, David P. Woodruff, Amir Zandieh:
HyperAttention: Long-context Attention in Near-Linear Time, arXiv:2310.05869.

1. Queries and keys are sorted by their sides of random hyperplanes (`rml.attention.sort_lsh`).
   Each block of sorted queries attends exactly to the block of keys at its place: large entries.
2. All other keys are estimated from one sample of keys, each of which stands for many. With
   `sampling="value_norm"` their values are, and the sums of rows have a sample and bounds of their
   own: the estimator of the paper's analysis, which is not in the authors' code.

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
from rml.ops.attention_parts import (
    Part,
    Visible,
    attend_part,
    finite_top,
    merge_parts,
    scaled_logits,
)
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
      sampling: "uniform", as in the authors' code, or "value_norm", the estimator of the paper's
        algorithms 2 and 3 as we remember them: values are sampled with probability proportional to
        |value|², sums of rows uniformly, see `bounded_part`.
      order: Of the buckets, see `sorted_order`.
      overlap: Whether a block of queries also attends to half a block of keys on either side.
      cap: Of "value_norm": factor of the largest exponential that counts in a row's sum, the
        paper's ε²; infinity for no cap.
      kappa: Of "value_norm": how much smaller than the largest sum of a row without its block any
        other may be; infinity for no such floor.
    """

    planes: int = 7
    block: int = 256
    samples: int = 256
    least: int = 4096
    sampling: Sampling = "uniform"
    order: Order = "gray"
    overlap: bool = False
    cap: float = 1.0
    kappa: float = 100.0


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
    for name in ("cap", "kappa"):
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name}={getattr(settings, name)}, expected above 0")
    if settings.overlap and settings.block % 2:
        raise ValueError(f"block={settings.block}, expected an even number where blocks overlap")


class RowSums(NamedTuple):
    """What sums of rows are estimated and bounded by.

    Attributes:
      chosen: [..., m], which keys, drawn uniformly.
      log_weight: [..., m], logarithm of how many keys each stands for; -inf where there are none.
      rows: [..., m], places of queries whose sums are exact, as shares of all queries.
    """

    chosen: Int[Array, "*b m"]
    log_weight: Float[Array, "*b m"]
    rows: Float[Array, "*b m"]


class Samples(NamedTuple):
    """Keys that stand for others.

    Attributes:
      chosen: [..., m], which keys.
      log_weight: [..., m], logarithm of how many keys each stands for; -inf where there are none.
      row_sums: Of "value_norm", whose samples stand for values alone.
    """

    chosen: Int[Array, "*b m"]
    log_weight: Float[Array, "*b m"]
    row_sums: RowSums | None = None


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
        return Samples(*_drawn(rng, here.astype(jnp.float32), m))
    share = jnp.where(here, jnp.sum(jnp.square(value.astype(jnp.float32)), axis=-1), 0.0)
    rng, of_sums, of_rows = jax.random.split(rng, 3)
    sums = _drawn(of_sums, here.astype(jnp.float32), m)
    rows = jax.random.uniform(of_rows, (*here.shape[:-1], m))
    return Samples(*_drawn(rng, lax.stop_gradient(share), m), RowSums(*sums, rows))


def _drawn(rng: Array, share: Array, m: int) -> tuple[Array, Array]:
    """Places drawn in proportion to shares [..., s], and the logarithm of 1 / (m p)."""
    upto = jnp.cumsum(share, axis=-1)
    total = upto[..., -1:]
    drawn = jax.random.uniform(rng, (*upto.shape[:-1], m)) * total

    def find(upto: Array, drawn: Array) -> Array:
        return jnp.searchsorted(upto, drawn, side="right")

    flat = jax.vmap(find)(upto.reshape(-1, upto.shape[-1]), drawn.reshape(-1, m))
    index = jnp.minimum(flat.reshape(drawn.shape), share.shape[-1] - 1)
    p = jnp.take_along_axis(share, index, axis=-1) / jnp.where(total > 0, total, 1.0)
    return index, jnp.where(p > 0, -jnp.log(jnp.where(p > 0, p, 1.0) * m), -jnp.inf)


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
    here = jnp.broadcast_to(here, key.shape[:-1])
    if planes is None:
        assert samples is not None
        part = sampled_part(query, key, value, samples, scale)
        if samples.row_sums is None:
            return part
        sums, none = samples.row_sums, jnp.full(part.lse.shape, -jnp.inf)
        floor = log_floor(query, key, here, sums.rows, settings, scale)
        logits = _sampled_logits(query, key, sums.chosen, scale)
        nothing = Part(jnp.zeros_like(part.out), none)
        return bounded_part(nothing, part, logits, sums.log_weight, floor, here, settings)
    t, s = query.shape[-2], key.shape[-2]
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
    first = jnp.arange(blocks)[:, None] * settings.block

    def beyond(chosen: Array, log_weight: Array) -> Array:
        """Weights of samples for each block, [..., blocks, m]; those in it do not count."""
        sampled = jnp.take_along_axis(place, chosen, axis=-1)[..., None, :]
        return jnp.where(_within(sampled, first, settings), -jnp.inf, log_weight[..., None, :])

    if samples is not None and samples.row_sums is not None:
        sums = samples.row_sums
        ordered = query.reshape(*query.shape[:-3], blocks * rows, -1)
        floor = log_floor(ordered, key, here, sums.rows, settings, scale, place, t, rows)

        @jax.checkpoint
        def bounded(block: tuple[Array, ...]) -> Part:
            query, keys, values, weights, of_values, of_sums = block
            heavy = attend_part(
                query, keys[..., None, :, :], values[..., None, :, :], scale=scale,
                log_weights=weights[..., None, None, :],
            )  # fmt: skip
            light = sampled_part(query, key, value, samples._replace(log_weight=of_values), scale)
            logits = _sampled_logits(query, key, sums.chosen, scale)
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


def log_floor(
    query: Float[Array, "*b r t k"],
    key: Float[Array, "*b s k"],
    here: Bool[Array, "*b s"],
    rows: Float[Array, "*b m"],
    settings: Settings,
    scale: float,
    place: Int[Array, "*b s"] | None = None,
    number: int | None = None,
    size: int = 1,
) -> Float[Array, "*b r"]:
    """Logarithm of the least sum that a row may have beside its block: τ / κ.

    τ is the largest of the exact sums of some rows, without their blocks.

    Args:
      query: Queries in the order of their blocks.
      key: Keys.
      here: Which keys are there rather than padding.
      rows: Places of the rows as shares of all queries.
      settings: Size and overlap of blocks, and κ.
      scale: Factor of the logits.
      place: Of each key among the sorted ones; where it is missing there are no blocks.
      number: Number of queries, without those that fill up the last block.
      size: Queries of a block.
    """
    query, key = lax.stop_gradient((query, key))
    chosen = (rows * (number or query.shape[-2])).astype(jnp.int32)
    drawn = jnp.take_along_axis(query, chosen[..., None, :, None], axis=-2)
    first = chosen // size * settings.block

    def of_row(one: tuple[Array, Array]) -> Array:
        query, first = one
        rest = here if place is None else here & ~_within(place, first[..., None], settings)
        logits = jnp.einsum("...rk,...sk->...rs", query, key).astype(jnp.float32) * scale
        return jax.nn.logsumexp(jnp.where(rest[..., None, :], logits, -jnp.inf), axis=-1)

    of_rows = jnp.moveaxis(drawn, -2, 0), jnp.moveaxis(first, -1, 0)
    return lax.map(of_row, of_rows, batch_size=16).max(axis=0) - jnp.log(settings.kappa)


def bounded_part(
    heavy: Part,
    light: Part,
    logits: Float[Array, "*b r t m"],
    log_weight: Float[Array, "*b m"],
    floor: Float[Array, "*b r"],
    here: Bool[Array, "*b s"],
    settings: Settings,
) -> Part:
    """Attention to a block and to sampled values over bounded estimates of the rows' sums.

    With A the exponentials, H_i their sum over the block of row i, and samples j of the s keys, the
    sum of the row is H_i + max(Σ_j w_j min(A_ij, C_i), τ / κ), where samples in the block do not
    count and C_i = cap · m (H_i + τ / κ) / (s log s). Bounds have no gradient.

    Args:
      heavy: Part of the block.
      light: Part of the sampled values, whose sum of exponentials is not used as such.
      logits: Of the keys that are sampled for the sums.
      log_weight: Logarithm of how many keys each stands for; -inf for those of the block.
      floor: Logarithm of τ / κ.
      here: Which keys are there rather than padding.
      settings: The cap.

    Returns:
      The part of all keys, estimated.

    Source: arXiv:2310.05869, algorithms 2 and 3, as we remember them. There sampled values stand
    for those of the block as well, which is exact here; the constant of C_i is ours.
    """
    floor = floor[..., None]
    base = lax.stop_gradient(jnp.logaddexp(heavy.lse, floor))
    number = jnp.maximum(here.sum(axis=-1), 2)[..., None, None].astype(jnp.float32)
    share = settings.cap * logits.shape[-1] / (number * jnp.log(number))
    cap = jnp.where(jnp.isfinite(base), base + jnp.log(share), jnp.inf)
    counted = jnp.minimum(logits, cap[..., None]) + log_weight[..., None, None, :]
    top = lax.stop_gradient(finite_top(counted.max(axis=-1)))
    total = jnp.exp(counted - top[..., None]).sum(axis=-1)
    some = total > 0
    rest = jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + top, -jnp.inf)
    lse = jnp.logaddexp(heavy.lse, jnp.maximum(rest, floor))
    safe = jnp.where(jnp.isfinite(lse), lse, 0.0)
    out = sum(jnp.exp(part.lse - safe)[..., None] * part.out for part in (heavy, light))
    return Part(jnp.asarray(out), lse)


def _within(place: Array, first: Array, settings: Settings) -> Array:
    """Whether sorted places are those of the keys of a block, which begins at `first`."""
    half = settings.block // 2 if settings.overlap else 0
    return (place >= first - half) & (place < first + settings.block + half)


def _sampled_logits(query: Array, key: Array, chosen: Array, scale: float) -> Array:
    """Logits [..., r, t, m] with sampled keys."""
    drawn = jnp.take_along_axis(key, chosen[..., None], axis=-2)[..., None, :, :]
    return scaled_logits(query, drawn, scale)


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
    return _within(places[1][..., None, :], first, settings)


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
