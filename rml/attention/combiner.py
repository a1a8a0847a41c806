"""Attention to all tokens, near ones directly and far ones through summaries of regions (Combiner).

Hongyu Ren, Hanjun Dai, Zihang Dai, Mengjiao Yang, Jure Leskovec, Dale Schuurmans, Bo Dai:
Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv:2107.05768.

Attention is the conditional expectation of the values given a place. Combiner factorises it:

1. What a query sees is cut into some tokens that it attends to directly and disjoint regions.
2. One softmax goes over the direct keys and one key of each region, which pools the region's keys.
3. A region's value is an expectation within the region, given the pooled query of the region. It is
   the same for all queries, so that it is computed once.

How tokens are cut is `rml.attention.partition`, a table of all pairs; here no such table exists.
"""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from rml.errors import unknown
from rml.ops.attention_parts import Part, Visible, attend_part, finite_top, merge_parts

Kind = Literal["fixed", "logsparse", "vertical", "horizontal", "mixture", "joint"]
Pool = Literal["max", "mean"]


class Settings(NamedTuple):
    """How tokens are cut and regions summarised.

    Attributes:
      kind: "fixed" attends directly within a segment, and every other segment is a region.
        "logsparse" does so too, but regions double with distance. "vertical" and "horizontal"
        lay the text out in rows and attend directly within row and column; regions are the rest of
        every other column, or row. "mixture" is the mean of these two, the paper's section 3.3;
        "joint" one softmax over both, in which a far token counts twice, as in the authors' code.
      segment: Tokens of a segment or a row. The paper's logsparse has one: a query attends directly
        to itself alone.
      pool: Of a region's queries and keys, over each coordinate.
      regions: Whether regions are attended to; otherwise the direct part alone is computed, which
        is sparse attention.
    """

    kind: Kind = "fixed"
    segment: int = 64
    pool: Pool = "max"
    regions: bool = True


class Tokens(NamedTuple):
    """Tokens, or the summaries of regions, along the last axis but one.

    Attributes:
      query: [*b, t, k].
      key: [*#b, t, k].
      value: [*#b, t, v].
      here: [*#b, t], which are there rather than padding or an empty region.
    """

    query: Float[Array, "*b t k"]
    key: Float[Array, "*c t k"]
    value: Float[Array, "*d t v"]
    here: Bool[Array, "*e t"]

    def rows(self, size: int) -> "Tokens":
        """The same in rows of a size, [*b, rows, size, k]."""
        here = self.here.reshape(*self.here.shape[:-1], -1, size)
        query, key, value = (x.reshape(*x.shape[:-2], -1, size, x.shape[-1]) for x in self[:3])
        return Tokens(query, key, value, here)

    def turned(self) -> "Tokens":
        """Rows as columns."""
        query, key, value = (x.swapaxes(-3, -2) for x in self[:3])
        return Tokens(query, key, value, self.here.swapaxes(-2, -1))

    def reversed(self) -> "Tokens":
        """The same in the opposite order."""
        query, key, value = (x[..., ::-1, :] for x in self[:3])
        return Tokens(query, key, value, self.here[..., ::-1])


def combiner_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    settings: Settings = Settings(),  # noqa: B008
    scale: float | None = None,
) -> Float[Array, "b h t v"]:
    """Attends to near tokens directly and to all others through summaries of regions.

    It equals softmax attention where all tokens are direct or every region has one. A causal query
    reads whole regions of the past only, so that no later token changes what it gives.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys, as many as queries; g divides h.
      value: Values.
      visible: Padding and causality.
      settings: How tokens are cut and regions summarised.
      scale: Factor of the logits; k^-1/2 by default.

    Returns:
      Outputs, float32 or wider.

    Raises:
      ValueError: If a setting or a shape is not as described.

    Source: arXiv:2107.05768, equations 3 to 10; "joint" is the authors' JAX code. Attention that is
    not causal is this repository's reading: regions before and after a token are kept apart, and
    none holds a token that is attended to directly.
    """
    b, h, t, k = query.shape
    g, s = key.shape[1:3]
    check_settings(settings)
    visible.require_whole("combiner_attention")
    if h % g:
        raise ValueError(f"{g} heads of keys must divide {h} heads of queries")
    if t != s:
        raise ValueError(f"combiner_attention takes as many queries as keys, got {t} and {s}")
    settings = settings._replace(segment=min(settings.segment, t))
    whole = settings.segment
    while settings.kind == "logsparse" and whole < t:  # every block has another beside it
        whole *= 2
    here = jnp.ones((b, t), bool) if visible.keys is None else jnp.asarray(visible.keys)
    pad = (0, -t % whole)
    # What is pooled is float32, and XLA on CPUs lacks products of bfloat16 along turned axes.
    query, key, value = (
        jnp.pad(x.astype(jnp.promote_types(x.dtype, jnp.float32)), ((0, 0),) * 3 + (pad, (0, 0)))
        for x in (query.reshape(b, g, h // g, t, k), key[:, :, None], value[:, :, None])
    )
    tokens = Tokens(query, key, value, jnp.pad(here, ((0, 0), pad))[:, None, None])
    scale = k**-0.5 if scale is None else scale
    make = {"fixed": _fixed, "logsparse": _logsparse}.get(settings.kind, _axial)
    direct, regions = make(tokens, settings, visible.causal, scale)
    if not settings.regions:
        out = direct.out
    elif settings.kind == "mixture":
        out = jnp.mean(jnp.stack([merge_parts(direct, *own).out for own in regions]), axis=0)
    else:
        out = merge_parts(direct, *(part for own in regions for part in own)).out
    return out.reshape(b, h, -1, value.shape[-1])[:, :, :t]


def check_settings(settings: Settings) -> None:
    """Raises a ValueError that names the setting that is out of its range."""
    if settings.kind not in get_args(Kind):
        raise unknown("kind of combiner", settings.kind, get_args(Kind))
    if settings.pool not in get_args(Pool):
        raise unknown("pool", settings.pool, get_args(Pool))
    if settings.segment < 1:
        raise ValueError(f"segment={settings.segment}, expected at least 1")


Regions = list[list[Part]]
"""Parts of regions, by partition."""


def _fixed(tokens: Tokens, settings: Settings, causal: bool, scale: float) -> tuple[Part, Regions]:
    """Own segment, and one region for every other segment, or every earlier one."""
    blocks = tokens.rows(settings.segment)
    direct = _flat(_attend(blocks, causal, scale))
    found = summaries(blocks, settings.pool, scale)
    places = jnp.arange(tokens.query.shape[-2]) // settings.segment
    other = _others(blocks.here.shape[-2], causal)[places]
    mask = other & found.here[..., None, :]
    return direct, [[attend_part(tokens.query, found.key, found.value, mask, scale=scale)]]


def _logsparse(
    tokens: Tokens, settings: Settings, causal: bool, scale: float
) -> tuple[Part, Regions]:
    """Own segment, and at every level of the binary tree over segments the block beside one's own.

    Of causal attention only blocks on the left count: the blocks that cover all before a segment.
    """
    direct = _flat(_attend(tokens.rows(settings.segment), causal, scale))
    parts, size = [], settings.segment
    while size < tokens.query.shape[-2]:
        blocks = tokens.rows(size)
        # Pairs of blocks exchange what they are summarised by.
        found = summaries(blocks, settings.pool, scale).rows(2).reversed()
        key, value = (
            x.reshape(*x.shape[:-3], -1, 1, x.shape[-1]) for x in (found.key, found.value)
        )
        mask = found.here & (jnp.arange(2) == 1) if causal else found.here
        mask = mask.reshape(*mask.shape[:-2], -1, 1, 1)
        parts.append(_flat(attend_part(blocks.query, key, value, mask, scale=scale)))
        size *= 2
    return direct, [parts]


def _axial(tokens: Tokens, settings: Settings, causal: bool, scale: float) -> tuple[Part, Regions]:
    """Own row and column, and the rest of every other column, or row, or one after the other."""
    rows = tokens.rows(settings.segment)
    columns = rows.turned()
    height, width = rows.here.shape[-2:]
    up = attend_part(
        columns.query, columns.key, columns.value,
        _others(height, causal) & columns.here[..., None, :], scale=scale,
    )  # fmt: skip
    direct = merge_parts(_flat(_attend(rows, causal, scale)), _flat(_turned(up)))
    regions = []
    if settings.regions and settings.kind != "horizontal":
        seen = ~jnp.eye(width, dtype=bool)
        sides = (False,) if causal else (False, True)  # nothing below is seen if causal
        regions.append([_across(columns, seen, settings.pool, scale, after) for after in sides])
    if settings.regions and settings.kind != "vertical":
        seen = _others(height, causal)
        regions.append(
            [_turned(_across(rows, seen, settings.pool, scale, after)) for after in (False, True)]
        )
    return direct, [[_flat(part) for part in own] for own in regions]


def _across(lines: Tokens, seen: Array, pool: Pool, scale: float, after: bool) -> Part:
    """Attends from every place of a line to what lies before that place in other lines.

    Args:
      lines: [*b, lines, places, k].
      seen: [lines, lines], which other lines a query sees.
      pool: Of queries and keys.
      scale: Factor of the logits.
      after: Whether it is what lies after that place.

    Returns:
      Output [*b, places, lines, v] and its log-sum-exp.
    """
    found = (
        before(lines.reversed(), pool, scale).reversed() if after else before(lines, pool, scale)
    )
    found, query = found.turned(), lines.query.swapaxes(-3, -2)
    mask = seen & found.here[..., None, :]
    return attend_part(query, found.key, found.value, mask, scale=scale)


def summaries(tokens: Tokens, pool: Pool, scale: float) -> Tokens:
    """The summary of each row: its pooled query and key, and its expected value given that query.

    Args:
      tokens: [*b, rows, size, k].
      pool: Of queries and keys.
      scale: Factor of the logits.

    Returns:
      Summaries [*b, rows, k]; one of padding alone is not there.
    """
    query, key = (pooled(x, tokens.here, pool) for x in (tokens.query, tokens.key))
    mask = tokens.here[..., None, :]
    value = attend_part(query[..., None, :], tokens.key, tokens.value, mask, scale=scale).out
    return Tokens(query, key, value[..., 0, :], tokens.here.any(axis=-1))


def before(tokens: Tokens, pool: Pool, scale: float) -> Tokens:
    """At each place the summary of all earlier places, of the same shapes; none at the first."""
    n = tokens.here.shape[-1]
    shifted = jnp.roll(tokens.here, 1, axis=-1) & (jnp.arange(n) > 0)
    query, key = (
        pooled(jnp.roll(x, 1, axis=-2), shifted, pool, running=True)
        for x in (tokens.query, tokens.key)
    )
    mask = _others(n, True) & tokens.here[..., None, :]
    value = attend_part(query, tokens.key, tokens.value, mask, scale=scale).out
    return Tokens(query, key, value, jnp.cumsum(shifted, axis=-1) > 0)


def pooled(
    x: Float[Array, "*b n k"], here: Bool[Array, "*c n"], pool: Pool, *, running: bool = False
) -> Float[Array, "..."]:
    """Maximum or mean over vectors that are there, 0 where none is.

    Args:
      x: Vectors.
      here: Which of them are there.
      pool: Which of both.
      running: Whether to give one for every place, of all vectors up to it.
    """
    here = here[..., None]
    if pool == "max":
        filled = jnp.where(here, x, -jnp.inf)
        return finite_top(lax.cummax(filled, axis=x.ndim - 2) if running else filled.max(axis=-2))
    total, count = jnp.where(here, x, 0.0), here.astype(x.dtype)
    total, count = (jnp.cumsum(y, -2) if running else y.sum(axis=-2) for y in (total, count))
    return total / jnp.maximum(count, 1.0)


def _others(n: int, causal: bool) -> Array:
    """Which of n places see which others: all, or the earlier ones."""
    return jnp.tril(jnp.ones((n, n), bool), -1) if causal else ~jnp.eye(n, dtype=bool)


def _attend(rows: Tokens, causal: bool, scale: float) -> Part:
    """Attends within rows."""
    n = rows.here.shape[-1]
    mask = rows.here[..., None, :] & (jnp.tril(jnp.ones((n, n), bool)) if causal else True)
    return attend_part(rows.query, rows.key, rows.value, mask, scale=scale)


def _turned(part: Part) -> Part:
    return Part(part.out.swapaxes(-3, -2), part.lse.swapaxes(-2, -1))


def _flat(part: Part) -> Part:
    """Rows one after the other."""
    out, lse = part
    return Part(out.reshape(*out.shape[:-3], -1, out.shape[-1]), lse.reshape(*lse.shape[:-2], -1))
