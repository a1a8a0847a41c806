"""Negatives of a retriever's training pairs: documents drawn at random, or mined by a search."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rml.ops.shapes import check_count, check_shapes, check_whole
from rml.retrieval.search import search


def random_negatives(
    document: Int[np.ndarray, " p"], *, documents: int, count: int, rng: np.random.Generator
) -> Int[np.ndarray, "p count"]:
    """Draws documents other than each pair's own, all of them equally likely, with repetition.

    Args:
      document: Document of each of p pairs.
      documents: Number of documents of the collection.
      count: Number of documents drawn for each pair.
      rng: Generator of the draws.

    Returns:
      Document numbers.

    Raises:
      ValueError: If the collection has fewer than 2 documents, a pair names a document that is not
        there, or `count` is no whole number of at least 0.
    """
    check_whole(documents=documents)
    check_count(0, count=count)
    if documents < 2:
        raise ValueError(f"a negative needs another document, got a collection of {documents}")
    _check_numbers("document", document, documents)
    other = rng.integers(0, documents - 1, (len(document), count))
    return other + (other >= document[:, None])


def hard_negatives(
    queries: Float[np.ndarray, "q d"],
    documents: Float[np.ndarray, "n d"],
    *,
    query: Int[np.ndarray, " p"],
    document: Int[np.ndarray, " p"],
    count: int,
    own: Int[np.ndarray, " q"] | None = None,
) -> Int[np.ndarray, "p count"]:
    """Mines the documents that a retriever ranks highest for a pair's query and that do not answer.

    Args:
      queries: Vectors of the queries.
      documents: Vectors of the documents.
      query: Query of each of p pairs.
      document: Document that answers it; a query has as many answers as it has distinct pairs.
      count: Number of documents mined for each pair.
      own: Document that each query is itself, see `RetrievalData.own`; none if not given.

    Returns:
      Document numbers of each pair, by falling inner product; neither an answer of the pair's
      query nor the query itself.

    Raises:
      ValueError: If a pair or `own` names a query or a document that is not there, `own` is not of
        as many queries, other shapes do not fit, `count` is no whole number of at least 0, or a
        query has fewer than `count` documents beside its answers and itself, or fewer whose score
        is finite.

    Source: Izacard et al., Unsupervised Dense Information Retrieval with Contrastive Learning,
    arXiv:2112.09118, Section 4.3; Xiong et al., arXiv:2007.00808, mine anew during training.
    """
    check_shapes(
        queries=(queries, "q d"), documents=(documents, "m d"), query=(query, "p"),
        document=(document, "p"),
    )  # fmt: skip
    check_count(0, count=count)
    if own is not None and len(own) != len(queries):
        raise ValueError(f"own has {len(own)} documents for {len(queries)} queries")
    _check_numbers("query", query, len(queries))
    _check_numbers("document", document, len(documents))
    if own is not None:
        _check_numbers("own", own, len(documents), least=-1)
    answers = known_pairs(query, document, documents=len(documents), own=own)
    most = int(np.bincount(answers // len(documents)).max(initial=0))
    if len(documents) - most < count:
        raise ValueError(
            f"{count} negatives were asked for, but of {len(documents)} documents {most} answer "
            "the same query"
        )
    ranked = np.asarray(search(jnp.asarray(queries), jnp.asarray(documents), k=count + most)[1])
    found = pair_numbers(np.arange(len(queries))[:, None], ranked, documents=len(documents))
    # A place where nothing was found is a pair of another query: the one before it.
    answering = np.isin(found, answers) & (ranked >= 0)
    # A stable sort puts the answers last and leaves the others in the order of their scores.
    order = np.argsort(answering, axis=1, kind="stable")[:, :count]
    negatives = np.take_along_axis(ranked, order, axis=1)[query]
    if (negatives < 0).any():
        lost = query[(negatives < 0).any(axis=1)][0]
        raise ValueError(
            f"query {lost} has fewer than {count} negatives with a finite score, expected vectors "
            "without NaN"
        )
    return negatives


def pair_numbers(
    query: Int[np.ndarray, "*#pairs"], document: Int[np.ndarray, "*#pairs"], *, documents: int
) -> Int[np.ndarray, "*pairs"]:
    """Numbers pairs of a query and a document, each by a number of its own.

    Args:
      query: Query of each pair.
      document: Its document.
      documents: Number of documents of the collection.

    Returns:
      The numbers, of broadcast shape.
    """
    return query.astype(np.int64) * documents + document


def known_pairs(
    query: Int[np.ndarray, " p"],
    document: Int[np.ndarray, " p"],
    *,
    documents: int,
    own: Int[np.ndarray, " q"] | None = None,
) -> Int[np.ndarray, " k"]:
    """Lists the pairs that are no negatives: answers, and queries with the document that they are.

    Args:
      query: Query of each of p pairs.
      document: Document that answers it.
      documents: Number of documents of the collection.
      own: Document that each query is itself, see `RetrievalData.own`; none if not given.

    Returns:
      Their `pair_numbers`, each once, however often a pair is given.
    """
    answers = pair_numbers(query, document, documents=documents)
    if own is None:
        return np.unique(answers)
    asks = np.flatnonzero(own >= 0)
    return np.union1d(answers, pair_numbers(asks, own[asks], documents=documents))


def _check_numbers(name: str, found: Int[np.ndarray, " p"], size: int, *, least: int = 0) -> None:
    """Raises `ValueError` unless all lie in [least, size)."""
    if wrong := found[(found < least) | (found >= size)].tolist():
        raise ValueError(f"{name} has the number {wrong[0]}, expected {least} to {size - 1}")
