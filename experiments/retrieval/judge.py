"""How encoders are judged: search among the documents of unseen modules, beside BM25."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.retrieval.corpus import Corpus
from experiments.retrieval.model import TextModel
from rml import evaluation
from rml.data.text import RetrievalData
from rml.retrieval.embed import embed
from rml.retrieval.search import search
from rml.training import make_mesh

METRICS = {"ndcg": "nDCG@10", "recall": "Recall@100", "mrr": "MRR@10"}
DEPTH = 100

Results = dict[tuple[str, str], np.ndarray]
"""By task and metric the value of every query."""


class Judge:
    """Measures encoders on the test collections of a config, all by the same search."""

    def __init__(self, config: Any, corpus: Corpus):
        """Remembers the config; collections are opened when they are first needed.

        Args:
          config: The run's config, of which `data`, `evaluation`, `mesh` and `seed` are read.
          corpus: Its data.
        """
        self.config, self.corpus = config, corpus

    def collection(self, task: str, part: str = "test") -> RetrievalData:
        """The collection of a task, of its queries as many as the config asks for."""
        found = self.corpus.collection(task, part)
        return first_queries(found, self.config.evaluation[f"{part}_queries"])

    def dense(self, model: TextModel, variables: Any, part: str = "test") -> Results:
        """Results of an encoder."""
        results: Results = {}
        for task in self.config.data.tasks:
            data = self.collection(task, part)
            queries, documents = (
                self.embed(model, variables, texts) for texts in (data.queries, data.documents)
            )
            depth = min(DEPTH, len(documents))
            scores, rows = search(jnp.asarray(queries), jnp.asarray(documents), k=depth)
            results |= measure(task, data, np.asarray(scores), np.asarray(rows))
        return results

    def embed(self, model: TextModel, variables: Any, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, cut to `evaluation.max_length` tokens."""
        options = self.config.evaluation
        return embed(
            model.encode, variables, model.tokenizer, texts,
            max_length=min(options.max_length, model.encoder.backbone.positions),
            batch_tokens=options.batch_tokens, mesh=make_mesh(self.config.mesh),
        )  # fmt: skip

    def lexical(self) -> dict[str, Results]:
        """Results of BM25, its words as they stand and with identifiers split."""
        from experiments.retrieval import bm25  # its package is an extra

        found: dict[str, Results] = {}
        for name, split in (("bm25", False), ("bm25_code", True)):
            found[name] = {}
            for task in self.config.data.tasks:
                data = self.collection(task)
                depth = min(DEPTH, len(data.documents))
                scores, rows = bm25.search(
                    data.documents, data.queries, k=depth, split_identifiers=split
                )
                found[name] |= measure(task, data, scores, rows)
        return found

    def validate(self, model: TextModel, variables: Any) -> dict[str, float]:
        """Mean nDCG@10 over tasks on the validation collections."""
        results = self.dense(model, variables, "validation")
        return {"ndcg": float(np.mean([v.mean() for (_, m), v in results.items() if m == "ndcg"]))}


def first_queries(data: RetrievalData, count: int) -> RetrievalData:
    """A collection with its first queries alone, and all of its documents."""
    if len(data.queries) <= count:
        return data
    kept = data.qrels.query < count
    return RetrievalData(
        data.documents, data.document_ids, data.queries[:count], data.query_ids[:count],
        type(data.qrels)(*(column[kept] for column in data.qrels)), data.labels, data.class_names,
    )  # fmt: skip


def measure(task: str, data: RetrievalData, scores: np.ndarray, rows: np.ndarray) -> Results:
    """Metrics of every query from what a search found, equal scores ordered as trec_eval does."""
    qrels = evaluation.make_qrels(*data.qrels, num_queries=len(data.queries))
    ranked = evaluation.rank(
        jnp.asarray(scores), evaluation.tie_order(data.document_ids), documents=jnp.asarray(rows)
    )
    found = evaluation.retrieval_scores(ranked, qrels, cutoffs=(10, DEPTH))
    keys = {"ndcg": "ndcg@10", "recall": f"recall@{DEPTH}", "mrr": "mrr@10"}
    return {(task, name): np.asarray(found[key]) for name, key in keys.items()}


def compare(
    found: Mapping[str, Results], ours: str, *, seed: int, prefix: str = ""
) -> dict[str, float]:
    """Means of all systems, and how far one of them is above each of the others.

    Args:
      found: Results by system.
      ours: The one that is compared.
      seed: Of the resamples.
      prefix: Before the names of the differences.

    Returns:
      `<task>_<system>_<metric>`, and for each other system
      `<task>_<prefix><metric>_over_<system>` with the ends of the 95% interval (`_low`, `_high`)
      and the p-value (`_p`) of a paired bootstrap over queries.
    """
    metrics: dict[str, float] = {}
    for name, results in found.items():
        for (task, metric), values in results.items():
            metrics[f"{task}_{name}_{metric}"] = float(values.mean())
    for name, results in found.items():
        if name == ours:
            continue
        for (task, metric), values in results.items():
            key = f"{task}_{prefix}{metric}_over_{name}"
            test = evaluation.paired_bootstrap(
                jnp.asarray(found[ours][task, metric]), jnp.asarray(values),
                key=jax.random.key(seed),
            )  # fmt: skip
            metrics[key] = float(test.difference)
            metrics[f"{key}_low"], metrics[f"{key}_high"] = float(test.low), float(test.high)
            metrics[f"{key}_p"] = float(test.p_value)
    return metrics
