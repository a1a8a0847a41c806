"""Metrics of ranked retrieval, as trec_eval defines them."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from rml.evaluation.rankings import Qrels as Qrels
from rml.evaluation.rankings import make_qrels as make_qrels
from rml.evaluation.rankings import rank as rank
from rml.evaluation.rankings import ranked_grades as ranked_grades
from rml.evaluation.rankings import tie_order as tie_order

Gain = Literal["linear", "exponential"]
_LARGEST_POWER = 120
"""Grade beyond which exponential gains are scaled down; from 128 on float32 has no such power."""


def _check_cutoff(k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1 or None, got {k}")


def _hits(grades: Array, k: int | None, threshold: int) -> Array:
    _check_cutoff(k)
    if threshold < 1:
        raise ValueError(f"threshold must be at least 1, got {threshold}")
    return (grades[..., :k] >= threshold).astype(jnp.float32)


def _share(part: Array, whole: Array) -> Array:
    """The quotient, 0 where the whole is 0."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _num_relevant(judged: Array, threshold: int) -> Array:
    return jnp.sum(judged >= threshold, axis=-1).astype(jnp.float32)


def _check_queries(grades: Array, judged: Array) -> None:
    if grades.shape[:-1] != judged.shape[:-1]:
        raise ValueError(
            f"grades and judged must be of the same queries, got shapes {grades.shape} and "
            f"{judged.shape}"
        )


def _excess(*grades: Array) -> Array:
    """How far the largest of a query's grades lies above `_LARGEST_POWER`, 0 if it does not."""
    largest = [jnp.max(own, axis=-1, keepdims=True, initial=0) for own in grades]
    return jnp.maximum(jnp.maximum(*largest).astype(jnp.float32) - _LARGEST_POWER, 0)


def precision(
    grades: Num[Array, "*batch l"], *, k: int, threshold: int = 1
) -> Float[Array, "*batch"]:
    """Computes the relevant share of the first k documents; irrelevant ones fill a shorter list.

    Args:
      grades: Grades in ranked order.
      k: Cutoff.
      threshold: Least grade that is relevant.

    Returns:
      Numbers between 0 and 1.

    Raises:
      ValueError: If `k` or the threshold is less than 1.
    """
    return jnp.sum(_hits(grades, k, threshold), axis=-1) / k


def success(
    grades: Num[Array, "*batch l"], *, k: int, threshold: int = 1
) -> Float[Array, "*batch"]:
    """Computes the hit rate: 1 if any of the first k documents is relevant, otherwise 0.

    Args:
      grades: Grades in ranked order.
      k: Cutoff.
      threshold: Least grade that is relevant.

    Returns:
      Zeros and ones.

    Raises:
      ValueError: If `k` or the threshold is less than 1.
    """
    return jnp.max(_hits(grades, k, threshold), axis=-1, initial=0)


def recall(
    grades: Num[Array, "*batch l"],
    judged: Num[Array, "*batch r"],
    *,
    k: int | None = None,
    threshold: int = 1,
) -> Float[Array, "*batch"]:
    """Computes the share of relevant documents that are among the first k; 0 if there are none.

    Args:
      grades: Grades in ranked order.
      judged: Grades of all judged documents in any order, padded by 0.
      k: Cutoff, by default the length of the list.
      threshold: Least grade that is relevant.

    Returns:
      Numbers between 0 and 1.

    Raises:
      ValueError: If `k` or the threshold is less than 1, or the queries differ.
    """
    _check_queries(grades, judged)
    found = jnp.sum(_hits(grades, k, threshold), axis=-1)
    return _share(found, _num_relevant(judged, threshold))


def reciprocal_rank(
    grades: Num[Array, "*batch l"], *, k: int | None = None, threshold: int = 1
) -> Float[Array, "*batch"]:
    """Computes one over the rank of the first relevant document; 0 if it is not among the first k.

    Its mean over queries is MRR.

    Args:
      grades: Grades in ranked order.
      k: Cutoff, by default the length of the list.
      threshold: Least grade that is relevant.

    Returns:
      Numbers between 0 and 1.

    Raises:
      ValueError: If `k` or the threshold is less than 1.
    """
    hits = _hits(grades, k, threshold)
    return jnp.max(hits / (1 + jnp.arange(hits.shape[-1])), axis=-1, initial=0)


def average_precision(
    grades: Num[Array, "*batch l"],
    judged: Num[Array, "*batch r"],
    *,
    k: int | None = None,
    threshold: int = 1,
) -> Float[Array, "*batch"]:
    """Averages precision at the rank of each relevant document of the first k, over all relevant.

    The sum is divided by the number of all relevant documents, found or not; 0 if there are none.
    Its mean over queries is MAP.

    Args:
      grades: Grades in ranked order.
      judged: Grades of all judged documents in any order, padded by 0.
      k: Cutoff, by default the length of the list.
      threshold: Least grade that is relevant.

    Returns:
      Numbers between 0 and 1.

    Raises:
      ValueError: If `k` or the threshold is less than 1, or the queries differ.
    """
    _check_queries(grades, judged)
    hits = _hits(grades, k, threshold)
    precisions = jnp.cumsum(hits, axis=-1) / (1 + jnp.arange(hits.shape[-1]))
    return _share(jnp.sum(hits * precisions, axis=-1), _num_relevant(judged, threshold))


def ndcg(
    grades: Num[Array, "*batch l"],
    judged: Num[Array, "*batch r"],
    *,
    k: int | None = None,
    gain: Gain = "linear",
) -> Float[Array, "*batch"]:
    """Computes discounted cumulative gain of the first k documents over that of the best order.

    DCG@k = Σ_{i ≤ k} gain(grade_i) / log2(i + 1); the best order is that of all judged documents.
    A grade of 0 or below has no gain; 0 if no grade is above.

    Args:
      grades: Grades in ranked order.
      judged: Grades of all judged documents in any order, padded by 0.
      k: Cutoff, by default none, not for the best order either.
      gain: "linear", the grade itself as in trec_eval, or "exponential", 2^grade - 1.

    Returns:
      Numbers between 0 and 1.

    Raises:
      ValueError: If `k` is less than 1, the gain is unknown, or the queries differ.

    Source: Järvelin and Kekäläinen 2002, "Cumulated Gain-Based Evaluation of IR Techniques";
      Burges et al. 2005, "Learning to Rank using Gradient Descent", for the exponential gain.
    """
    _check_queries(grades, judged)
    _check_cutoff(k)
    if gain not in ("linear", "exponential"):
        raise ValueError(f"gain must be 'linear' or 'exponential', got {gain!r}")

    # A factor common to a query's gains, which the quotient cancels, keeps powers in range.
    shift = _excess(grades, judged) if gain == "exponential" else 0.0

    def dcg(ordered: Array) -> Array:
        gains = jnp.maximum(ordered[..., :k], 0).astype(jnp.float32)
        if gain == "exponential":
            gains = jnp.exp2(gains - shift) - jnp.exp2(-shift)
        return jnp.sum(gains / jnp.log2(2.0 + jnp.arange(gains.shape[-1])), axis=-1)

    return _share(dcg(grades), dcg(jnp.flip(jnp.sort(judged, axis=-1), -1)))


def retrieval_scores(
    ranked: Int[Array, "q l"],
    qrels: Qrels,
    *,
    cutoffs: Sequence[int] = (10,),
    threshold: int = 1,
    gain: Gain = "linear",
) -> dict[str, Float[Array, " q"]]:
    """Computes all metrics of each query, for a table and for tests of significance.

    The mean of a metric is that over all queries, and equals that of ir_measures: a query without
    results, or without a relevant document, scores 0 and counts (`trec_eval -c`).

    Args:
      ranked: Documents of each query, best first, padded by -1: from `rank` where trec_eval's
        order of equal scores matters, or as a search returned them.
      qrels: The judgements.
      cutoffs: Values of k.
      threshold: Least grade that is relevant; nDCG reads the grades themselves.
      gain: Gain of nDCG.

    Returns:
      `ndcg@k`, `recall@k`, `precision@k`, `mrr@k`, `map@k` and `success@k` of each query for each
      k of `cutoffs`.

    Raises:
      ValueError: If the numbers of queries differ, or a cutoff or the threshold is less than 1.
    """
    grades, judged = ranked_grades(ranked, qrels), qrels.grades
    scores = {}
    for k in cutoffs:
        level = {"k": k, "threshold": threshold}
        scores[f"ndcg@{k}"] = ndcg(grades, judged, k=k, gain=gain)
        scores[f"recall@{k}"] = recall(grades, judged, **level)
        scores[f"precision@{k}"] = precision(grades, **level)
        scores[f"mrr@{k}"] = reciprocal_rank(grades, **level)
        scores[f"map@{k}"] = average_precision(grades, judged, **level)
        scores[f"success@{k}"] = success(grades, **level)
    return scores
