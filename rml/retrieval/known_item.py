"""Known-item search: a document is asked for by words that it begins with."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from rml.ops.shapes import check_count, check_shapes
from rml.retrieval.search import search


class KnownItems(NamedTuple):
    """How m documents are found by queries of their own.

    Attributes:
      first: Share of the documents that rank first for their query.
      among: Share of those among the k best.
      own: Inner product of each query with its document.
      other: Largest inner product of each query with another document, -inf where there is none.
      hits: Whether each document ranks first, of which `first` is the share.
    """

    first: float
    among: float
    own: Float[np.ndarray, " m"]
    other: Float[np.ndarray, " m"]
    hits: Bool[np.ndarray, " m"]


def known_items(
    encode: Callable[[Sequence[str]], Float[np.ndarray, "m d"]],
    texts: Sequence[str],
    vectors: Float[np.ndarray, "n d"],
    *,
    sample: int,
    rng: np.random.Generator,
    words: Callable[[int], int] = lambda count: max(4, count // 8),
    k: int = 10,
) -> KnownItems:
    """Asks for documents, drawn without repetition, by the words that they begin with.

    Of an encoder that cuts texts, a query is a larger share of its document than `words` says.

    Args:
      encode: Vectors of texts, such as a `TextEmbedder`.
      texts: The documents.
      vectors: Their vectors.
      sample: The most documents that are asked for.
      rng: Generator of the draw.
      words: Number of words of a query, for the number of words of its document; by default an
        eighth, but at least four.
      k: The most documents that are found for each query.

    Returns:
      What was found.

    Raises:
      ValueError: If there are not as many vectors as texts, or `sample` or `k` is no whole number
        of at least 1.
    """
    check_shapes(vectors=(vectors, f"{len(texts)} d"))
    check_count(1, sample=sample, k=k)
    rows = np.sort(rng.choice(len(texts), min(sample, len(texts)), replace=False))
    split = [texts[row].split() for row in rows]
    queries = encode([" ".join(own[: words(len(own))]) for own in split])
    depth = min(max(k, 2), len(texts))  # the document itself and another
    scores, found = map(np.asarray, search(jnp.asarray(queries), jnp.asarray(vectors), k=depth))
    hits = found == rows[:, None]
    return KnownItems(
        first=float(np.mean(hits[:, 0])),
        among=float(np.mean(hits[:, :k].any(axis=1))),
        own=np.sum(queries * vectors[rows], axis=1),
        other=np.max(np.where(hits, -np.inf, scores), axis=1),
        hits=hits[:, 0],
    )
