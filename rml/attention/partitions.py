"""How Combiner cuts what each token sees, as a table of all pairs, and the weights by definition.

Both take time and memory quadratic in tokens: they are for figures, counts and as a reference.
`rml.attention.combiner` computes the same without them. See there for the paper.
"""

from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from rml.attention.combiner_summaries import DeepSet, Pool
from rml.errors import unknown
from rml.ops.shapes import check_count

UNSEEN, DIRECT = 0, 1
"""Labels of tokens that are not seen and of those that are attended to directly."""


def partition(kind: str, length: int, *, segment: int, causal: bool) -> Int[np.ndarray, "t t"]:
    """Labels each key for each query: `UNSEEN`, `DIRECT`, or from 2 on the number of its region.

    Args:
      kind: "fixed", "logsparse", "vertical" or "horizontal", see `rml.attention.CombinerSettings`.
      length: Number of tokens.
      segment: Tokens of a segment or a row.
      causal: Whether later tokens are unseen.

    Raises:
      ValueError: If the kind is unknown, `length` is no whole number of at least 0, or `segment`
        none of at least 1.
    """
    check_count(0, length=length)
    check_count(1, segment=segment)
    i, j = np.indices((length, length))
    row_i, row_j, column_i, column_j = i // segment, j // segment, i % segment, j % segment
    if kind == "fixed":
        labels = np.where(row_i == row_j, DIRECT, 2 + row_j)
    elif kind == "logsparse":
        # The highest bit in which two segments' numbers differ is the level at which they part.
        level = np.frexp(row_i ^ row_j)[1] - 1
        labels = np.where(row_i == row_j, DIRECT, 2 + level)
    elif kind in ("vertical", "horizontal"):
        place, later = (column_j, j > i) if kind == "vertical" else (row_j, column_j > column_i)
        near = (row_i == row_j) | (column_i == column_j)
        labels = np.where(near, DIRECT, 2 + 2 * place + later)
    else:
        raise unknown("kind of partition", kind, ("fixed", "logsparse", "vertical", "horizontal"))
    return np.where(causal & (j > i), UNSEEN, labels)


class Keys(NamedTuple):
    """Products of a query and a key that a partition needs, by what they are for.

    Attributes:
      direct: Number of products of tokens with tokens.
      regions: Number of products of tokens with regions.
      within: Number of those of regions with their own tokens; each region counts once.
    """

    direct: int
    regions: int
    within: int


def count_keys(labels: Int[np.ndarray, "t t"]) -> Keys:
    """Counts the products of a query and a key that a partition needs."""
    regions, within = 0, 0
    for label in range(2, labels.max(initial=0) + 1):
        members = labels == label
        regions += int(members.any(axis=1).sum())
        distinct = np.unique(np.packbits(members, axis=1), axis=0)
        within += int(np.unpackbits(distinct, axis=1).sum())
    return Keys(int((labels == DIRECT).sum()), regions, within)


def combiner_weights(
    query: Float[np.ndarray, "t k"],
    key: Float[np.ndarray, "t k"],
    *partitions: Int[np.ndarray, "t t"],
    pool: str = "max",
    deep: DeepSet | None = None,
    relu: bool = False,
    scale: float | None = None,
) -> Float[np.ndarray, "t t"]:
    """Computes the weight of each token for each query, from the definition, in float64.

    Args:
      query: Queries of one head.
      key: Its keys.
      *partitions: Labels of `partition`. With several of them one softmax goes over the direct
        tokens and the regions of all.
      pool: Pooling of a region's queries and keys: "max", "mean" or "sum".
      deep: Weights that these go through before, see `DeepSet`.
      relu: Whether they go through relu alone.
      scale: Factor of the logits; k^-1/2 by default.

    Returns:
      Weights: each row sums to one, unless it sees nothing and is zero. A mixture's are the mean.

    Raises:
      ValueError: If the pool is unknown.
    """
    if pool not in get_args(Pool):
        raise unknown("pool", pool, get_args(Pool))
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    scale = query.shape[1] ** -0.5 if scale is None else scale
    combines: dict[str, Callable[..., np.ndarray]] = {
        "max": np.max, "mean": np.mean, "sum": np.sum
    }  # fmt: skip
    combine = combines[pool]
    pooled_query, pooled_key = (np.maximum(x, 0) if relu else x for x in (query, key))
    if deep is not None:
        pooled_query, pooled_key = (
            np.maximum(x @ np.asarray(w, np.float64), 0)
            for x, w in zip((query, key), deep, strict=True)
        )
    found = np.zeros((len(query), len(query)))
    for i, own in enumerate(query):
        keys: list[np.ndarray] = []
        shares: list[np.ndarray] = []
        for j in np.flatnonzero(partitions[0][i] == DIRECT):
            keys.append(key[j])
            shares.append(np.eye(len(query))[j])
        for labels in partitions:
            for label in np.unique(labels[i][labels[i] > DIRECT]):
                members = labels[i] == label
                keys.append(combine(pooled_key[members], axis=0))
                share = np.zeros(len(query))
                asks = combine(pooled_query[members], axis=0)
                share[members] = _softmax(key[members] @ asks * scale)
                shares.append(share)
        if keys:
            found[i] = _softmax(np.stack(keys) @ own * scale) @ np.stack(shares)
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())
