"""Samples of keys that stand for all others, and bounds of the sums of rows (HyperAttention).

Part of `rml.attention.hyperattention`, where the paper is named.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from rml.attention.sort_lsh import Order
from rml.errors import unknown
from rml.ops.attention_parts import Part, attend_part, finite_top, scaled_logits

Sampling = Literal["uniform", "value_norm"]


class HyperSettings(NamedTuple):
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
      order: Order of the buckets, see `sorted_order`.
      overlap: Whether a block of queries also attends to half a block of keys on either side.
      cap: Factor, in "value_norm", of the largest exponential that counts in a row's sum, the
        paper's ε²; infinity for no cap, as without planes, where no block has the large ones.
      kappa: Factor, in "value_norm", by which a row's sum without its block may be smaller than
        the largest one; infinity for no such floor.
      sinks: First keys, padding included, that every query attends to exactly beside its block,
        an addition of ours: most queries of many decoders look at the first tokens, whose column
        of the attention matrix no sample stands for.
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
    sinks: int = 0


def check_settings(settings: HyperSettings) -> None:
    """Raises a ValueError that names the setting that is out of its range."""
    for name, least in (("block", 1), ("samples", int(not settings.planes)), ("least", 0),
                        ("sinks", 0)):  # fmt: skip
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
      row_sums: Row sums of "value_norm", whose samples stand for values alone.
    """

    chosen: Int[Array, "*b m"]
    log_weight: Float[Array, "*b m"]
    row_sums: RowSums | None = None


def draw_samples(
    rng: Key[Array, ""],
    value: Float[Array, "*b s v"],
    here: Bool[Array, "*#b s"],
    settings: HyperSettings,
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


def log_floor(
    query: Float[Array, "*b r t k"],
    key: Float[Array, "*b s k"],
    here: Bool[Array, "*b s"],
    rows: Float[Array, "*b m"],
    settings: HyperSettings,
    scale: float,
    place: Int[Array, "*b s"] | None = None,
    number: int | Int[Array, "*#b 1"] | None = None,
    size: int = 1,
) -> Float[Array, "*b r"]:
    """Computes the logarithm of the least sum that a row may have beside its block: τ / κ.

    τ is the largest of the exact sums of some rows, without their blocks.

    Args:
      query: Queries in the order of their blocks, padding last.
      key: Keys.
      here: Which keys are there rather than padding.
      rows: Places of the rows as shares of all queries.
      settings: Size and overlap of blocks, and κ.
      scale: Factor of the logits.
      place: Place of each key among the sorted ones; where it is missing there are no blocks.
      number: Number of queries, without padding and those that fill up the last block.
      size: Queries of a block.
    """
    query, key = lax.stop_gradient((query, key))
    chosen = (rows * (query.shape[-2] if number is None else number)).astype(jnp.int32)
    drawn = jnp.take_along_axis(query, chosen[..., None, :, None], axis=-2)
    first = chosen // size * settings.block

    def of_row(one: tuple[Array, Array]) -> Array:
        query, first = one
        rest = here if place is None else here & ~within(place, first[..., None], settings)
        logits = scaled_logits(query, key, scale)
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
    settings: HyperSettings,
) -> Part:
    """Attends to a block and to sampled values over bounded estimates of the rows' sums.

    With A the exponentials, H_i their sum over the block of row i, and samples j of the s keys, the
    sum of the row is H_i + max(Σ_j w_j min(A_ij, C_i), τ / κ), where samples in the block do not
    count and C_i = cap · m (H_i + τ / κ) / (s log s). Bounds have no gradient. Of this sum, sampled
    values have no more than what is beside H_i, so that no output is longer than values are.

    Args:
      heavy: Part of the block.
      light: Part of the sampled values, whose sum of exponentials counts as far as it is less.
      logits: Logits of the keys that are sampled for the sums.
      log_weight: Logarithm of how many keys each stands for; -inf for those of the block.
      floor: Logarithm of τ / κ.
      here: Which keys are there rather than padding.
      settings: The cap.

    Returns:
      The part of all keys, estimated.

    Source: arXiv:2310.05869, algorithms 2 and 3, as we remember them. There sampled values stand
    for those of the block as well, which is exact here; the constant of C_i is ours, and so is the
    bound of their part.
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
    rest = jnp.maximum(rest, floor)
    lse = jnp.logaddexp(heavy.lse, rest)
    safe = jnp.where(jnp.isfinite(lse), lse, 0.0)
    granted = jnp.minimum(light.lse, rest)  # another sample's sum, which has no bound of its own
    shares = (heavy.lse, heavy.out), (granted, light.out)
    out = sum(jnp.exp(share - safe)[..., None] * part for share, part in shares)
    return Part(jnp.asarray(out), lse)


def within(place: Array, first: Array, settings: HyperSettings) -> Array:
    """Tells whether sorted places are those of the keys of a block, which begins at `first`."""
    half = settings.block // 2 if settings.overlap else 0
    return (place >= first - half) & (place < first + settings.block + half)


def sampled_logits(query: Array, key: Array, chosen: Array, scale: float) -> Array:
    """Computes logits [..., r, t, m] with sampled keys."""
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
