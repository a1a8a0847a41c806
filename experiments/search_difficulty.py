"""How hard the search of a data set is: what BM25 finds of what its test examples ask for."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.difficulty import Scores, scored
from rml.data.collections import ASKED, PAGE, without_words
from rml.data.sets.manuals import co_cited
from rml.evaluation import make_qrels, retrieval_scores
from rml.retrieval import bm25_search

QUERIES = 1000  # most texts that are searched for
DEPTH = 100  # documents that a search finds
WORDS = 4  # of the shortest text that is searched for


def of_search(
    builder: Any, asked: str, found: str, masked: str = "", most: int = QUERIES
) -> Scores:
    """BM25 from one text of a test example to the other among all examples' ones.

    Args:
      builder: The prepared data set.
      asked: Feature that is searched for; texts of less than `WORDS` words and those that several
        examples have are left out.
      found: Feature that is searched.
      masked: Feature whose words are taken out of what is searched; none if empty.
      most: Most texts that are searched for.
    """
    rows = [row for split in builder.info.splits for row in builder.as_data_source(split)]
    tests = range(len(rows) - len(builder.as_data_source("test")), len(rows))
    questions = [row[asked].decode() for row in rows]
    documents = [
        without_words(row[found].decode(), row[masked].decode() if masked else "") for row in rows
    ]
    known = Counter(questions)
    queries = [
        at for at in tests if known[questions[at]] == 1 and len(questions[at].split()) >= WORDS
    ][:most]
    _, ranked = bm25_search(documents, [questions[at] for at in queries], k=DEPTH)
    task = f"`{found}` by `{asked}`" + (f", words of `{masked}` masked" if masked else "")
    yield from searched(task, ranked, [[at] for at in queries], len(documents))


def of_manuals(builder: Any, most: int = QUERIES) -> Scores:
    """BM25 in each domain: from a test page's beginning to the pages that a third names with it."""
    domains: dict[int, list[tuple[Mapping[str, Any], bool]]] = defaultdict(list)
    for split in builder.info.splits:
        for row in builder.as_data_source(split):
            domains[row["label"]].append((row, split == "test"))
    for domain, pages in sorted(domains.items()):
        places = {row["page"].decode(): at for at, (row, _) in enumerate(pages)}
        see = {row["page"].decode(): [name.decode() for name in row["see"]] for row, _ in pages}
        related = defaultdict(list)
        for pair in co_cited(see):
            for own, other in (pair, pair[::-1]):
                related[places[own]].append(places[other])
        texts = [row["text"].decode()[:PAGE] for row, _ in pages]
        queries = [at for at, (_, test) in enumerate(pages) if test and related[at]][:most]
        _, ranked = bm25_search(texts, [texts[at][:ASKED] for at in queries], k=DEPTH + 1)
        others = [
            [place for place in row if place != at] for at, row in zip(queries, ranked, strict=True)
        ]
        kept = np.array([row[:DEPTH] for row in others])
        task = f"related pages of {builder.info.features['label'].int2str(domain)}"
        yield from searched(task, kept, [related[at] for at in queries], len(texts))


def searched(
    task: str, ranked: np.ndarray, relevant: Sequence[Sequence[int]], documents: int
) -> Scores:
    """nDCG@10 and recall@100 of a search whose relevant documents are known."""
    pairs = np.array([(at, one) for at, found in enumerate(relevant) for one in found])
    query, document = pairs.T
    qrels = make_qrels(query, document, np.ones_like(query), num_queries=len(relevant))
    scores = retrieval_scores(jnp.asarray(ranked), qrels, cutoffs=(10, DEPTH))
    for metric, name in (("ndcg@10", "nDCG@10"), (f"recall@{DEPTH}", f"R@{DEPTH}")):
        yield scored(task, "BM25", name, np.asarray(scores[metric]), documents)
