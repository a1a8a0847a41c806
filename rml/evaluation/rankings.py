"""Relevance judgements as arrays, and rankings in the order that trec_eval gives them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Sorts after every document.
_NO_DOCUMENT = np.iinfo(np.int32).max


class Qrels(NamedTuple):
    """Relevance judgements, one row for each query, padded to the longest row.

    Attributes:
      documents: Judged documents of each query, rising, then padding.
      grades: Their grades, 0 for padding; what counts as relevant is a metric's threshold.
    """

    documents: Int[Array, "q r"]
    grades: Int[Array, "q r"]


def make_qrels(
    query: Int[Array | np.ndarray, " e"],
    document: Int[Array | np.ndarray, " e"],
    grade: Int[Array | np.ndarray, " e"],
    *,
    num_queries: int,
) -> Qrels:
    """Lays out judgements, given as parallel arrays, one row for each query; built on the host.

    Args:
      query: Query of each judgement.
      document: Document of each judgement.
      grade: Grade of each judgement, any integer; 0 and below are not relevant.
      num_queries: Number of queries q.

    Returns:
      The judgements.

    Raises:
      ValueError: If the lengths differ, an index is out of range, a document is judged twice for
        a query, or a query has no judgement: trec_eval leaves such a query out, and so must the
        caller.
    """
    queries, documents, grades = (np.asarray(a) for a in (query, document, grade))
    if not queries.shape == documents.shape == grades.shape:
        raise ValueError(
            f"query, document and grade must have the same length, got shapes {queries.shape}, "
            f"{documents.shape} and {grades.shape}"
        )
    if queries.size and (queries.min() < 0 or queries.max() >= num_queries):
        raise ValueError(
            f"query must lie between 0 and {num_queries - 1}, got values from {queries.min()} to "
            f"{queries.max()}"
        )
    if documents.size and (documents.min() < 0 or documents.max() >= _NO_DOCUMENT):
        raise ValueError(
            f"document must lie between 0 and {_NO_DOCUMENT - 1}, got values from "
            f"{documents.min()} to {documents.max()}"
        )
    judged = np.bincount(queries, minlength=num_queries)
    if num_queries < 1 or not judged.all():
        raise ValueError(
            f"every query needs a judgement, got none for {np.flatnonzero(judged == 0).tolist()} "
            f"of {num_queries} queries"
        )
    order = np.lexsort((documents, queries))
    queries, documents, grades = queries[order], documents[order], grades[order]
    again = (np.diff(queries) == 0) & (np.diff(documents) == 0)
    if again.any():
        first = int(np.argmax(again))
        raise ValueError(
            f"a document must be judged once for a query, got two judgements of document "
            f"{documents[first]} for query {queries[first]}"
        )
    column = np.arange(len(queries)) - np.repeat(np.cumsum(judged) - judged, judged)
    shape = num_queries, judged.max()
    rows = np.full(shape, _NO_DOCUMENT, np.int32), np.zeros(shape, np.int32)
    rows[0][queries, column], rows[1][queries, column] = documents, grades
    return Qrels(jnp.asarray(rows[0]), jnp.asarray(rows[1]))


def tie_order(document_ids: Sequence[str]) -> Int[Array, " n"]:
    """Finds the place of each document among equal scores: trec_eval puts the last name first.

    Args:
      document_ids: Names of the documents, compared byte by byte in UTF-8: "9" before "10".

    Returns:
      Places, from 0.

    Raises:
      ValueError: If a name occurs twice.
    """
    names = [name.encode() for name in document_ids]
    if len(set(names)) < len(names):
        raise ValueError(
            f"document ids must be different, got {len(names)} with {len(set(names))} names"
        )
    place = np.empty(len(names), np.int32)
    place[sorted(range(len(names)), key=names.__getitem__, reverse=True)] = np.arange(len(names))
    return jnp.asarray(place)


def rank(
    scores: Float[Array, "q l"],
    order: Int[Array, " n"],
    *,
    documents: Int[Array, "q l"] | None = None,
    k: int | None = None,
) -> Int[Array, "q k"]:
    """Ranks documents by falling score, equal scores by `order`, as trec_eval evaluates them.

    Args:
      scores: Scores, compared as float32 as trec_eval does. NaN ranks like -inf.
      order: The place of each document among equals, from `tie_order`.
      documents: The document of each score, -1 for none, for the lists of a search; by default
        score j is that of document j.
      k: Documents kept, by default all.

    Returns:
      Documents, best first, then -1 where there are none.

    Raises:
      ValueError: If the shapes disagree or `k` is less than 1.
    """
    if documents is None:
        if scores.shape[1] != order.shape[0]:
            raise ValueError(
                f"scores of all documents must have a column for each, got shapes {scores.shape} "
                f"and {order.shape}"
            )
        documents = jnp.broadcast_to(jnp.arange(order.shape[0], dtype=jnp.int32), scores.shape)
    if documents.shape != scores.shape:
        raise ValueError(
            f"documents and scores must have the same shape, got {documents.shape} and "
            f"{scores.shape}"
        )
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1 or None, got {k}")
    scores = scores.astype(jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    missing = documents < 0
    keys = missing.astype(jnp.int32), -scores, order[documents], documents
    ranked = jax.lax.sort(keys, dimension=1, num_keys=3)[-1]
    return jnp.where(jnp.sort(missing, axis=1), -1, ranked)[:, :k]


@jax.vmap
def _look_up(ranked: Array, documents: Array, grades: Array) -> Array:
    place = jnp.minimum(jnp.searchsorted(documents, ranked), documents.shape[0] - 1)
    return jnp.where(documents[place] == ranked, grades[place], 0)


def ranked_grades(ranked: Int[Array, "q l"], qrels: Qrels) -> Int[Array, "q l"]:
    """Grades of ranked documents; 0 for a document that was not judged and for none (-1).

    Args:
      ranked: Documents, best first, each at most once in a row, then -1.
      qrels: The judgements of the same queries.

    Returns:
      Grades.

    Raises:
      ValueError: If the numbers of queries differ.
    """
    if ranked.shape[0] != qrels.documents.shape[0]:
        raise ValueError(
            f"rankings and judgements must be of the same queries, got shapes {ranked.shape} and "
            f"{qrels.documents.shape}"
        )
    return _look_up(ranked, *qrels)
