"""BM25, the lexical search that encoders are compared with, by the package bm25s."""

import logging
import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from rml.errors import UserError, install
from rml.ops.shapes import check_whole

# A word starts at a capital after a small letter or digit, at the last capital of several before
# a small letter, and after an underscore: parse_HTTPHeader2Go is parse, HTTP, Header2, Go.
_INSIDE_IDENTIFIER = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def bm25_search(
    documents: Sequence[str],
    queries: Sequence[str],
    *,
    k: int,
    split_identifiers: bool = False,
    k1: float = 1.5,
    b: float = 0.75,
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Finds the k documents with the highest BM25 for each query, highest first.

    Words are runs of two or more letters, digits and underscores, in lower case and without the 33
    English stopwords of Lucene; nothing is stemmed. The score is Lucene's:
    Σ_t log(1 + (n - n_t + 0.5) / (n_t + 0.5)) · f_t / (f_t + k1 (1 - b + b · length / mean length))
    over the words t of the query, f_t times in the document and in n_t of n documents.

    Args:
      documents: Texts to search.
      queries: Texts to search for.
      k: Documents found for each query.
      split_identifiers: Take the parts of snake_case and camelCase for words.
      k1: How slowly repeated words add up, at least 0.
      b: How much long documents are held back, from 0 to 1.

    Returns:
      Scores and document numbers; -inf and -1 past the documents that share a word with the query.
      Among equal scores the lower document comes first.

    Raises:
      UserError: If bm25s is not installed, `k` is not between 1 and the number of documents, `k1`
        or `b` is out of its range, or no document has a word.
      ValueError: If `k` is no whole number.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond",
      section 3; Kamphuis et al. 2020, "Which BM25 Do You Mean?", for Lucene's form.
    """
    try:
        import bm25s
    except ImportError:
        raise UserError(f"BM25 needs bm25s: {install('retrieval')}") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports every step otherwise
    check_whole(k=k)
    if not (0 <= k1 < math.inf and 0 <= b <= 1):
        raise UserError(f"k1 is {k1} and b is {b}, expected at least 0 and from 0 to 1")
    if not 1 <= k <= len(documents):
        raise UserError(f"k must be between 1 and the {len(documents)} documents, got {k}")

    def words(texts: Sequence[str]) -> list[list[str]]:
        if split_identifiers:
            texts = [_INSIDE_IDENTIFIER.sub(" ", text) for text in texts]
        return bm25s.tokenize(
            list(texts),
            lower=True,
            token_pattern=r"(?u)\b\w\w+\b",
            stopwords="en",
            stemmer=None,
            return_ids=False,
            show_progress=False,
        )

    corpus = words(documents)
    if not any(corpus):
        raise UserError(f"no word in {len(documents)} documents; expected at least one")
    model = bm25s.BM25(k1=k1, b=b, method="lucene")
    model.index(corpus, show_progress=False)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    for i, query in enumerate(words(queries)):
        known = [word for word in query if word in model.vocab_dict]
        if not known:
            continue
        # Its own selection leaves the order of equal scores open.
        found = model.get_scores(known)
        best = np.argsort(-found, kind="stable")[:k]
        best = best[found[best] > 0]
        scores[i, : len(best)], rows[i, : len(best)] = found[best], best
    return scores, rows
