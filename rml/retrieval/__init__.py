"""Retrieval of text, by vectors and by words.

* `embed`, `TextEmbedder`: the vectors of a corpus, by any encoder, on any mesh.
* `search`, `build_index`, `search_index`: exact maximum-inner-product search on any mesh.
* `bm25_search`: the lexical baseline (Robertson and Zaragoza 2009).
* `pair_batches`: queries with their documents, to train on; `random_negatives`, `hard_negatives`:
  what they are trained against (Izacard et al., Contriever, arXiv:2112.09118, Section 4.3).
* `temper`: attention sharpened in a trained encoder (Zhou et al., arXiv:2410.24200), beside
  `scale_by_length`, `chunked_encode` and `fit_whitening`; `tuned_encode` takes the number along,
  `choose_temperature` finds it on queries whose answers are known.
* `known_items`: how documents are found by words that they begin with.
"""

from rml.embedding import BATCH_TOKENS, TextEmbedder, embed
from rml.retrieval.bm25 import bm25_search
from rml.retrieval.known_item import KnownItems, known_items
from rml.retrieval.negatives import hard_negatives, random_negatives
from rml.retrieval.pairs import pair_batches, pair_spec
from rml.retrieval.search import Index, build_index, search, search_index
from rml.retrieval.tempscale import (
    Choice,
    Tuned,
    Whitening,
    choose_temperature,
    chunked_encode,
    fit_whitening,
    scale_by_length,
    temper,
    tuned_encode,
    whiten,
)

__all__ = [
    "BATCH_TOKENS",
    "Choice",
    "Index",
    "KnownItems",
    "TextEmbedder",
    "Tuned",
    "Whitening",
    "bm25_search",
    "build_index",
    "choose_temperature",
    "chunked_encode",
    "embed",
    "fit_whitening",
    "hard_negatives",
    "known_items",
    "pair_batches",
    "pair_spec",
    "random_negatives",
    "scale_by_length",
    "search",
    "search_index",
    "temper",
    "tuned_encode",
    "whiten",
]
