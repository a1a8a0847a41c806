"""Attention to all tokens, near ones directly and far ones through summaries of regions (Combiner).

Hongyu Ren, Hanjun Dai, Zihang Dai, Mengjiao Yang, Jure Leskovec, Dale Schuurmans, Bo Dai:
Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv:2107.05768.

Attention is the conditional expectation of the values given a place. Combiner factorises it:

1. What a query sees is cut into some tokens that it attends to directly and disjoint regions.
2. One softmax goes over the direct keys and one key of each region, which pools the region's keys.
3. A region's value is an expectation within the region, given the pooled query of the region. It is
   the same for all queries, so that it is computed once.

How tokens are cut is `rml.attention.partition`, a table of all pairs; here no such table exists.
Regions of regions, the paper's tree, and regions learned by clustering are left out.
"""

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.attention.combiner_summaries import (
    DeepSet,
    Pool,
    Pooling,
    RowProjection,
    RowSummary,
    Tokens,
    before,
    others,
    row_summaries,
    summaries,
)
from rml.errors import unknown
from rml.ops.attention_parts import Part, Visible, attend_part, check_attention, merge_parts

Kind = Literal["fixed", "logsparse", "vertical", "horizontal", "rowmajor", "mixture", "joint"]


class CombinerSettings(NamedTuple):
    """How tokens are cut and regions summarised.

    Attributes:
      kind: "fixed" attends directly within a segment, and every other segment is a region.
        "logsparse" does so too, but regions double with distance. "vertical" and "horizontal"
        lay the text out in rows and attend directly within row and column; regions are the rest of
        every other column, or row. "rowmajor" attends directly within a row, and every other row is
        a region, which each column has a summary of its own of; that of a column where the row has
        padding is not seen. "mixture" is the mean of "vertical" and "horizontal", the paper's
        section 3.3; "joint" one softmax over both, in which a far token counts twice, as in the
        authors' code.
      segment: Tokens of a segment or a row. The paper's logsparse has one: a query attends directly
        to itself alone.
      pool: Pooling of a region's queries and keys, over each coordinate. "rowmajor" pools nothing
        and takes "max".
      regions: Whether regions are attended to; otherwise the direct part alone is computed, which
        is sparse attention.
      row_summary: The key of a row of "rowmajor": "none" is that of the place in the query's
        column, "wsum" the mean of the row's keys by the weights with which that place attends to
        the row. "proj" is a projection of what it attends to, the authors' JAX code, and
        "wsum_proj" one of that mean of keys. Of other kinds it is "none".
      relu: Whether a region's vectors go through relu before they pool. DeepSets have their own.
    """

    kind: Kind = "fixed"
    segment: int = 64
    pool: Pool = "max"
    regions: bool = True
    row_summary: RowSummary = "none"
    relu: bool = False


def combiner_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    settings: CombinerSettings = CombinerSettings(),  # noqa: B008
    deep: DeepSet | None = None,
    projection: RowProjection | None = None,
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
      deep: Weights of a model for summaries by DeepSets; without them vectors pool as they are.
      projection: Weights of a model for keys of rows, and its inputs, where `settings.row_summary`
        projects.
      scale: Factor of the logits, at least 0; k^-1/2 by default.

    Returns:
      Outputs, float32 or wider.

    Raises:
      ValueError: If a setting, a shape or the scale is not as described.

    Source: arXiv:2107.05768, equations 3 to 10; "joint" and `row_summary` are the authors' code
    (github.com/google-research/google-research, combiner). Its logsparse has a level too few for
    2^n + 1 tokens, the last of which sees itself alone; here it sees all. Attention that is not
    causal is this repository's reading: regions before and after a token are kept apart, and none
    holds a token that is attended to directly.
    """
    check_attention(query, key, value, visible, scale)
    b, h, t, k = query.shape
    g, s = key.shape[1:3]
    check_settings(settings)
    visible.require_whole("combiner_attention")
    if t != s:
        raise ValueError(f"combiner_attention takes as many queries as keys, got {t} and {s}")
    if deep is not None and settings.kind == "rowmajor":
        raise ValueError("a DeepSet with kind='rowmajor', expected none: its rows do not pool")
    if deep is not None and settings.relu:
        raise ValueError("a DeepSet with relu=True, expected False: it has a relu of its own")
    if (projection is not None) != projects(settings):
        raise ValueError(
            f"kind={settings.kind!r} with row_summary={settings.row_summary!r} expects "
            f"{'a' if projects(settings) else 'no'} projection"
        )
    if projection is not None and projection.inputs.shape[:2] != (b, t):
        raise ValueError(
            f"inputs of a projection of shape {projection.inputs.shape} for queries of shape "
            f"{query.shape}"
        )
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
    if projection is not None:
        inputs = jnp.pad(projection.inputs, ((0, 0), pad, (0, 0)))
        projection = projection._replace(inputs=inputs)
    make = {"fixed": _fixed, "logsparse": _logsparse, "rowmajor": _rowmajor}.get(
        settings.kind, _axial
    )
    pooling = Pooling(settings.pool, deep, settings.row_summary, projection, settings.relu)
    direct, regions = make(tokens, settings, pooling, visible.causal, scale)
    if not settings.regions:
        out = direct.out
    elif settings.kind == "mixture":
        out = jnp.mean(jnp.stack([merge_parts(direct, *own).out for own in regions]), axis=0)
    else:
        out = merge_parts(direct, *(part for own in regions for part in own)).out
    return out.reshape(b, h, -1, value.shape[-1])[:, :, :t]


def check_settings(settings: CombinerSettings) -> None:
    """Raises a ValueError that names the setting that is out of its range."""
    if settings.kind not in get_args(Kind):
        raise unknown("kind of combiner", settings.kind, get_args(Kind))
    if settings.pool not in get_args(Pool):
        raise unknown("pool", settings.pool, get_args(Pool))
    if settings.row_summary not in get_args(RowSummary):
        raise unknown("summary of rows", settings.row_summary, get_args(RowSummary))
    if settings.segment < 1:
        raise ValueError(f"segment={settings.segment}, expected at least 1")
    rows = settings.kind == "rowmajor"
    if rows and (settings.pool != "max" or settings.relu):
        raise ValueError(
            f"pool={settings.pool!r} and relu={settings.relu} with kind='rowmajor', expected 'max' "
            "and False: rows do not pool"
        )
    if not rows and settings.row_summary != "none":
        raise ValueError(
            f"row_summary={settings.row_summary!r} with kind={settings.kind!r}, expected 'none': "
            "'rowmajor' alone has summaries of rows"
        )


def projects(settings: CombinerSettings) -> bool:
    """Tells whether keys of rows are projected by weights of a model."""
    return settings.kind == "rowmajor" and settings.row_summary.endswith("proj")


Regions = list[list[Part]]
"""Parts of regions, by partition."""


def _fixed(
    tokens: Tokens, settings: CombinerSettings, pooling: Pooling, causal: bool, scale: float
) -> tuple[Part, Regions]:
    """Own segment, and one region for every other segment, or every earlier one."""
    blocks = tokens.rows(settings.segment)
    direct = _flat(_attend(blocks, causal, scale))
    found = summaries(blocks, pooling, scale)
    places = jnp.arange(tokens.query.shape[-2]) // settings.segment
    other = others(blocks.here.shape[-2], causal)[places]
    mask = other & found.here[..., None, :]
    return direct, [[attend_part(tokens.query, found.key, found.value, mask, scale=scale)]]


def _logsparse(
    tokens: Tokens, settings: CombinerSettings, pooling: Pooling, causal: bool, scale: float
) -> tuple[Part, Regions]:
    """Own segment, and at every level of the binary tree over segments the block beside one's own.

    Of causal attention only blocks on the left count: the blocks that cover all before a segment.
    """
    direct = _flat(_attend(tokens.rows(settings.segment), causal, scale))
    parts, size = [], settings.segment
    while size < tokens.query.shape[-2]:
        blocks = tokens.rows(size)
        # Pairs of blocks exchange what they are summarised by.
        found = summaries(blocks, pooling, scale).rows(2).reversed()
        key, value = (
            x.reshape(*x.shape[:-3], -1, 1, x.shape[-1]) for x in (found.key, found.value)
        )
        mask = found.here & (jnp.arange(2) == 1) if causal else found.here
        mask = mask.reshape(*mask.shape[:-2], -1, 1, 1)
        parts.append(_flat(attend_part(blocks.query, key, value, mask, scale=scale)))
        size *= 2
    return direct, [parts]


def _rowmajor(
    tokens: Tokens, settings: CombinerSettings, pooling: Pooling, causal: bool, scale: float
) -> tuple[Part, Regions]:
    """Own row, and of every other row, or every earlier one, its summary at the own column."""
    rows = tokens.rows(settings.segment)
    found = row_summaries(rows, pooling, scale).turned()
    mask = others(rows.here.shape[-2], causal) & found.here[..., None, :]
    up = attend_part(found.query, found.key, found.value, mask, scale=scale)
    return _flat(_attend(rows, causal, scale)), [[_flat(_turned(up))]]


def _axial(
    tokens: Tokens, settings: CombinerSettings, pooling: Pooling, causal: bool, scale: float
) -> tuple[Part, Regions]:
    """Own row and column, and the rest of every other column, or row, or one after the other."""
    rows = tokens.rows(settings.segment)
    columns = rows.turned()
    height, width = rows.here.shape[-2:]
    up = attend_part(
        columns.query, columns.key, columns.value,
        others(height, causal) & columns.here[..., None, :], scale=scale,
    )  # fmt: skip
    direct = merge_parts(_flat(_attend(rows, causal, scale)), _flat(_turned(up)))
    regions = []
    if settings.regions and settings.kind != "horizontal":
        seen = ~jnp.eye(width, dtype=bool)
        sides = (False,) if causal else (False, True)  # nothing below is seen if causal
        regions.append([_across(columns, seen, pooling, scale, after) for after in sides])
    if settings.regions and settings.kind != "vertical":
        seen = others(height, causal)
        regions.append(
            [_turned(_across(rows, seen, pooling, scale, after)) for after in (False, True)]
        )
    return direct, [[_flat(part) for part in own] for own in regions]


def _across(lines: Tokens, seen: Array, pooling: Pooling, scale: float, after: bool) -> Part:
    """Attends from every place of a line to what lies before that place in other lines.

    Args:
      lines: [*b, lines, places, k].
      seen: [lines, lines], which other lines a query sees.
      pooling: Pooling of queries and keys.
      scale: Factor of the logits.
      after: Whether it is what lies after that place.

    Returns:
      Output [*b, places, lines, v] and its log-sum-exp.
    """
    found = (
        before(lines.reversed(), pooling, scale).reversed()
        if after
        else before(lines, pooling, scale)
    )
    found, query = found.turned(), lines.query.swapaxes(-3, -2)
    mask = seen & found.here[..., None, :]
    return attend_part(query, found.key, found.value, mask, scale=scale)


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
