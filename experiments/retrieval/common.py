"""How retrievers are trained and judged: search in the documents of unseen modules, beside BM25."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.encoders import BUILT, TOKENIZER
from experiments.common.pretraining import train_on_mesh
from experiments.common.texts import Corpus, TextModel, built_by
from rml import evaluation
from rml.data.collections import RetrievalData
from rml.ops import t_interval
from rml.retrieval import TextEmbedder, bm25_search, search
from rml.training import RunDirectory, Task, build_optimizer
from rml.training.durable import write_json
from rml.training.processes import is_primary

DEPTH = 100
METRICS = {"ndcg": "nDCG@10", "recall": f"Recall@{DEPTH}", "mrr": "MRR@10"}
LABELS = {"start": "before training", "bm25": "BM25", "bm25_code": "BM25, identifiers split"}
CAPTIONS = {
    "systems_ndcg.png": "nDCG@10 on unseen modules, mean over queries and 95% interval.",
    "systems_recall.png": "Recall@100 on unseen modules, mean over queries and 95% interval.",
}
"""Of the figures of `draw_systems`, by file name."""

Results = dict[tuple[str, str], np.ndarray]
"""By task and metric the value of every query."""


class RetrievalEvaluator:
    """Measures retrievers on the collections of a config, all by the same metrics."""

    def __init__(self, config: Any, corpus: Corpus):
        """Remembers the config; collections are opened when they are first needed.

        Args:
          config: The run's config, of which `data.tasks` and `evaluation` are read.
          corpus: Its data.
        """
        self.config, self.corpus = config, corpus

    def collection(self, task: str, part: str = "test") -> RetrievalData:
        """The collection of a task, of its queries as many as the config asks for."""
        found = self.corpus.collection(task, part)
        return found.first_queries(self.config.evaluation[f"{part}_queries"])

    def check(self) -> None:
        """Opens all collections: what cannot be read fails before the training, not after it."""
        for task in self.config.data.tasks:
            self.collection(task, "validation")
            self.collection(task, "test")

    def measure(self, find: Callable[[RetrievalData, int], Any], part: str = "test") -> Results:
        """Metrics of every query, equal scores ordered as trec_eval does.

        Args:
          find: `find(collection, k) -> (scores, documents)` of the k best for each query.
          part: "test" or "validation".

        Returns:
          The metrics.
        """
        results: Results = {}
        for task in self.config.data.tasks:
            data = self.collection(task, part)
            results |= {(task, k): values for k, values in judge_ranking(data, find).items()}
        return results

    def dense(self, encode: TextEmbedder, part: str = "test") -> Results:
        """Results of an encoder."""

        def find(data: RetrievalData, k: int) -> Any:
            queries, documents = encode(data.queries), encode(data.documents)
            return search(jnp.asarray(queries), jnp.asarray(documents), k=k)

        return self.measure(find, part)

    def lexical(self) -> dict[str, Results]:
        """Results of BM25, its words as they stand and with identifiers split."""

        def find(data: RetrievalData, k: int, split: bool) -> Any:
            return bm25_search(data.documents, data.queries, k=k, split_identifiers=split)

        kinds = {"bm25": False, "bm25_code": True}
        return {name: self.measure(partial(find, split=split)) for name, split in kinds.items()}

    def validate(self, encode: TextEmbedder) -> dict[str, float]:
        """Mean nDCG@10 over tasks on the validation collections."""
        results = self.dense(encode, "validation")
        return {"ndcg": float(np.mean([v.mean() for (_, m), v in results.items() if m == "ndcg"]))}


def judge_ranking(
    data: RetrievalData, find: Callable[[RetrievalData, int], Any]
) -> dict[str, np.ndarray]:
    """Each of `METRICS` for every query of a collection, see `RetrievalEvaluator.measure`."""
    scores, documents = map(jnp.asarray, find(data, min(DEPTH, len(data.documents))))
    order = evaluation.tie_order(data.document_ids)
    ranked = evaluation.rank(scores, order, documents=documents)
    qrels = evaluation.make_qrels(*data.qrels, num_queries=len(data.queries))
    grades, judged = evaluation.ranked_grades(ranked, qrels), qrels.grades
    found = {
        "ndcg": evaluation.ndcg(grades, judged, k=10),
        "recall": evaluation.recall(grades, judged, k=DEPTH),
        "mrr": evaluation.reciprocal_rank(grades, k=10),
    }
    return {key: np.asarray(values) for key, values in found.items()}


def surroundings(config: Any, model: TextModel) -> dict[str, Any]:
    """What the task of a retriever needs beside its loss and data, for `gradient_task`."""
    evaluator = RetrievalEvaluator(config, model.corpus)
    return {
        "init_variables": model.init,
        "optimizer": build_optimizer(dict(config.optimizer), steps=config.train.steps),
        "evaluate": lambda state: evaluator.validate(model.features(state.variables)),
    }


def train_encoder(config: Any, run: RunDirectory, task: Task, model: TextModel) -> TextEmbedder:
    """Trains a retriever; leaves beside the checkpoints its tokenizer, and what builds it."""
    RetrievalEvaluator(config, model.corpus).check()
    file = run.path / TOKENIZER
    if not file.exists():
        model.tokenizer.save(str(file))
    if is_primary() and config.model.name == "run" and not (run.path / BUILT).exists():
        built = built_by(model.module)
        if built is not None:
            write_json(run.path / BUILT, built)
    return model.features(train_on_mesh(config, run, task, "eval/ndcg").variables)


def draw_systems(figure: Callable[[str], Path], found: dict[str, Results]) -> None:
    """Bars of nDCG and recall by task and system, with 95% intervals over queries."""
    tasks = list(dict.fromkeys(task for task, _ in next(iter(found.values()))))
    # A system may stand under two names, of which the first is drawn.
    names = {id(found[name]): name for name in reversed(found)}
    for metric in ("ndcg", "recall"):
        intervals = {
            LABELS.get(name, name.replace("_", " ")): [
                t_interval(results[task, metric]) for task in tasks
            ]
            for name, results in found.items()
            if names[id(results)] == name
        }
        figures.bars(
            figure(f"systems_{metric}.png"), [task.replace("_", " ") for task in tasks],
            {name: [own.mean for own in row] for name, row in intervals.items()},
            {name: [own.high - own.mean for own in row] for name, row in intervals.items()},
            ylabel=METRICS[metric],
        )  # fmt: skip
