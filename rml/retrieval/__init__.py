"""Retrieval of text, by vectors and by words.

* `embed`, `TextEmbedder`: the vectors of a corpus, by any encoder, on any mesh.
* `search`, `build_index`, `search_index`: exact maximum-inner-product search on any mesh.
* `bm25_search`: the lexical baseline (Robertson and Zaragoza 2009).
* `pair_batches`: queries with their documents, to train on; `random_negatives`, `hard_negatives`:
  what they are trained against (Izacard et al., Contriever, arXiv:2112.09118, Section 4.3).
* `known_items`: how documents are found by words that they begin with.
"""

from rml.retrieval.bm25 import bm25_search
from rml.retrieval.embed import BATCH_TOKENS, TextEmbedder, embed
from rml.retrieval.known_item import KnownItems, known_items
from rml.retrieval.negatives import hard_negatives, random_negatives
from rml.retrieval.pairs import pair_batches, pair_spec
from rml.retrieval.search import Index, build_index, search, search_index

__all__ = [
    "BATCH_TOKENS",
    "Index",
    "KnownItems",
    "TextEmbedder",
    "bm25_search",
    "build_index",
    "embed",
    "hard_negatives",
    "known_items",
    "pair_batches",
    "pair_spec",
    "random_negatives",
    "search",
    "search_index",
]
