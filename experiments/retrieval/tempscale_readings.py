"""What the recipe of TempScale measures of vectors: gains by length, and the collapse."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.retrieval.tempscale_methods import (
    METHODS,
    PLAIN,
    TEMPERED,
    Embedders,
    Vectors,
    text_lengths,
)
from rml.data.collections import RetrievalData
from rml.evaluation import paired_bootstrap, similarity_by_length
from rml.ops import t_interval
from rml.training import RunDirectory


def mean_of(values: np.ndarray, lengths: np.ndarray, least: int) -> float:
    """Mean over queries whose answer has that many tokens or more."""
    return float(values[lengths >= least].mean())


def compare(
    config: Any, scores: dict[str, np.ndarray], inverse: np.ndarray, lengths: np.ndarray
) -> dict[str, float]:
    """Means of all methods, and the difference of each to the encoder as it is."""
    metrics: dict[str, float] = {}
    key = jax.random.key(config.seed)
    groups = {"long": lengths >= config.long, "short": lengths < config.short}
    for group, rows in groups.items():
        metrics[f"{group}_queries"] = float(rows.sum())
        own = {name: values[rows] for name, values in scores.items()}
        for name, values in own.items():
            metrics[f"{group}_ndcg_{name.replace(' ', '_')}"] = float(values.mean())
        against = {
            "gain": (own[TEMPERED], own[PLAIN]),
            "gain_inverse": (inverse[rows], own[PLAIN]),
            **{f"over_{name}": (own[TEMPERED], own[name]) for name in METHODS if name != TEMPERED},
        }
        for name, pair in against.items():
            test = paired_bootstrap(*map(jnp.asarray, pair), key=key)
            metrics |= with_bounds(f"{group}_{name}", test[:3])
    return metrics


def measure_collapse(
    config: Any, run: RunDirectory, embedders: Embedders, data: RetrievalData,
    texts: Sequence[str], plain: Vectors, tempered: Vectors, inverse: Vectors,
) -> dict[str, float]:  # fmt: skip
    """How alike documents are by length, as they are and cut, and what the temperature changes.

    Bins of fewer documents than `config.least` are left out: one pair of near duplicates would
    decide them.
    """
    from scipy.stats import spearmanr  # slow to import

    rng = np.random.default_rng(config.seed)
    lengths = text_lengths(embedders.model, data.documents)
    edges = jnp.asarray(config.edges)
    middle = np.sqrt(np.asarray(config.edges[:-1]) * np.asarray(config.edges[1:]))

    def bins(x: jax.Array, own: np.ndarray) -> np.ndarray:
        found = similarity_by_length(x, jnp.asarray(own), edges)
        return np.where(found.number < config.least, np.nan, found.similarity)

    def rank(values: np.ndarray) -> float:
        seen = np.isfinite(values)
        return float(spearmanr(middle[seen], values[seen]).statistic)

    def gap(values: np.ndarray) -> float:
        seen = values[np.isfinite(values)]
        return float(seen[-1] - seen[0])

    lowest = min(config.candidates[TEMPERED])
    series = {
        "1": bins(plain.documents, lengths),
        f"{lowest:g}": bins(embedders(TEMPERED, lowest, data.documents), lengths),
    }
    before = gap(series["1"])
    after, smoothed = (gap(bins(own.documents, lengths)) for own in (tempered, inverse))
    cut = {
        name: [
            float(similarity_by_length(
                embedders(TEMPERED, value, texts, longest=length), jnp.ones(len(texts)),
                jnp.asarray((0, 2)),
            ).similarity[0])
            for length in config.cuts
        ]
        for name, value in (("1", 1.0), (f"{lowest:g}", lowest))
    }  # fmt: skip
    label = "tokens (log₂)"
    named = {f"temperature {name}": (np.log2(middle), own) for name, own in series.items()}
    figures.curves(run.figure("similarity.png"), named, label, "mean cosine")
    named = {
        f"temperature {name}": (np.log2(config.cuts), np.asarray(own)) for name, own in cut.items()
    }
    figures.curves(run.figure("cut.png"), named, label, "mean cosine")
    return {
        "collapse_rank": rank(series["1"]),
        "collapse_rank_permuted": rank(bins(plain.documents, rng.permutation(lengths))),
        "collapse_rank_cut": float(spearmanr(config.cuts, cut["1"]).statistic),
        "gap": before,
        "gap_tempered": after,
        "gap_lowest": gap(series[f"{lowest:g}"]),
        "gap_cut": cut["1"][-1] - cut["1"][0],
        "gap_cut_lowest": cut[f"{lowest:g}"][-1] - cut[f"{lowest:g}"][0],
        "gap_shrinks": (before - after) / abs(before),
        "gap_shrinks_inverse": (before - smoothed) / abs(before),
    }


def draw_ndcg(
    config: Any, run: RunDirectory, scores: dict[str, np.ndarray], lengths: np.ndarray
) -> None:
    """Bars of nDCG@10 by length of the answer and method."""
    groups = {
        f"below {config.short} tokens": lengths < config.short,
        f"to {config.long}": (lengths >= config.short) & (lengths < config.long),
        f"{config.long} or more": lengths >= config.long,
    }
    groups = {name: rows for name, rows in groups.items() if rows.any()}  # short may be long
    found = {
        name.replace("_", " "): [t_interval(values[rows]) for rows in groups.values()]
        for name, values in scores.items()
    }
    figures.bars(
        run.figure("ndcg.png"), list(groups),
        {name: [one.mean for one in row] for name, row in found.items()},
        {name: [one.high - one.mean for one in row] for name, row in found.items()},
        ylabel="nDCG@10",
    )  # fmt: skip
