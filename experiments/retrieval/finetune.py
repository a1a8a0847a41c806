"""Fine-tuning a retriever on queries with their documents, with random and then hard negatives.

Izacard et al., arXiv:2112.09118, Section 4.3 and Appendix: InfoNCE over the documents of the batch
and one more negative a query; first a random document, then, from the start again, in one of ten
queries a document that the first model ranks high and that is not the answer.
"""

import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from experiments.contrastive.common import draw_curves
from experiments.retrieval import drawing
from experiments.retrieval.contriever import variables_of
from experiments.retrieval.corpus import Corpus
from experiments.retrieval.judge import Judge, compare
from experiments.retrieval.model import TOKENIZER, TextModel
from rml import data
from rml.contrastive.mnr import multiple_negatives_ranking
from rml.data import tokens
from rml.errors import UserError
from rml.retrieval.search import search
from rml.training import (
    Claim,
    Progress,
    RunDirectory,
    Task,
    build_optimizer,
    fit,
    gradient_task,
    make_mesh,
)

SOURCE = "Contriever (arXiv:2112.09118), Section 4.3; data and margins are this repository's"
CLAIMS = (
    Claim("Fine-tuning with random negatives raises nDCG@10, lower end of the 95% interval",
          "docstring_to_code_random_negatives_ndcg_over_start_low", ">=", 0.0, SOURCE),
    Claim("Hard negatives raise it further, lower end of the 95% interval",
          "docstring_to_code_hard_negatives_ndcg_over_random_negatives_low", ">=", 0.0, SOURCE),
)  # fmt: skip
STAGES = ("random_negatives", "hard_negatives")
CAPTIONS = {
    "systems_ndcg.png": "nDCG@10 on unseen modules, mean over queries and 95% interval.",
    "systems_recall.png": "Recall@100 on unseen modules, mean over queries and 95% interval.",
}


class Pairs:
    """Queries with their documents in tokens, and candidates for negatives; opened when needed."""

    def __init__(self, config: Any, corpus: Corpus, model: TextModel):
        """Remembers where to read.

        Args:
          config: The run's config, of which `data`, `tokens`, `negatives` and `seed` are read.
          corpus: Its data.
          model: Its encoder.
        """
        self.config, self.corpus, self.model = config, corpus, model

    def batches(self, hard: np.ndarray | None, part: int, parts: int) -> grain.IterDataset:
        """Batches of pairs, each query with its candidates.

        Args:
          hard: Documents mined for each pair [p, `negatives.mined`]; None for random ones.
          part: Which part of each batch is read.
          parts: Of how many.
        """
        config = self.config
        collection = self.corpus.collection(config.data.tasks[0], "train")
        query, document = np.asarray(collection.qrels.query), np.asarray(collection.qrels.document)
        if len(collection.documents) <= config.negatives.mined:
            raise UserError(
                f"negatives.mined is {config.negatives.mined}, expected fewer than the "
                f"{len(collection.documents)} documents of data.train"
            )
        asked = self._encoded(collection.queries, config.tokens.query_length)
        found = self._encoded(collection.documents, config.tokens.document_length)
        drawn = self._random(document, len(collection.documents))
        candidates = np.concatenate([drawn if hard is None else hard, drawn], axis=1)
        arrays = {
            "query": asked[0][query],
            "query_length": asked[1][query],
            "document": found[0][document],
            "document_length": found[1][document],
            "pair": np.arange(len(query), dtype=np.int32),
        }

        def add_candidates(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            batch = dict(batch)
            rows = candidates[batch.pop("pair")]
            return batch | {"candidates": found[0][rows], "candidate_length": found[1][rows]}

        source = data.Arrays(arrays, name=config.data.name, split=config.data.train)
        read = data.batches(
            source, batch_size=config.train.batch_size, seed=config.seed, part=part, parts=parts
        )
        return read.map(add_candidates)

    def _encoded(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        encoded = tokens.encode(self.model.tokenizer, texts, max_length=length)
        filled, mask = tokens.pad(encoded, width=length, pad_id=self.model.special.padding)
        return filled, mask.sum(axis=1, dtype=np.int32)

    def _random(self, document: np.ndarray, count: int) -> np.ndarray:
        """Documents other than each pair's own, any of them equally likely."""
        rng = np.random.default_rng([self.config.seed, 2])
        other = rng.integers(0, count - 1, (len(document), self.config.negatives.mined))
        return other + (other >= document[:, None])

    def mine(self, judge: Judge, variables: Any) -> np.ndarray:
        """Documents that rank highest for each pair's query and do not answer it."""
        collection = self.corpus.collection(self.config.data.tasks[0], "train")
        queries, documents = (
            judge.embed(self.model, variables, texts)
            for texts in (collection.queries, collection.documents)
        )
        answers: dict[int, set[int]] = {}
        for query, document in zip(
            collection.qrels.query.tolist(), collection.qrels.document.tolist(), strict=True
        ):
            answers.setdefault(query, set()).add(document)
        wanted = self.config.negatives.mined
        depth = min(wanted + max(map(len, answers.values())), len(documents))
        ranked = np.asarray(search(jnp.asarray(queries), jnp.asarray(documents), k=depth)[1])
        rows = {
            query: [row for row in ranked[query].tolist() if row not in own][:wanted]
            for query, own in answers.items()
        }
        return np.array([rows[query] for query in collection.qrels.query.tolist()])


def batch_spec(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch, known without opening data."""
    size, options = config.train.batch_size, config.tokens
    candidates = 2 * config.negatives.mined
    shapes = {
        "query": (size, options.query_length),
        "query_length": (size,),
        "document": (size, options.document_length),
        "document_length": (size,),
        "candidates": (size, candidates, options.document_length),
        "candidate_length": (size, candidates),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}


def task(config: Any) -> Task:
    """The training problem of a config, with random negatives."""
    corpus = Corpus(config)
    model = TextModel(config, corpus.training_texts)
    return task_of(config, corpus, model, None)


def task_of(config: Any, corpus: Corpus, model: TextModel, hard: np.ndarray | None) -> Task:
    """The training problem with random negatives, or with these hard ones."""
    share = 0.0 if hard is None else config.negatives.hard_share
    mined, temperature = config.negatives.mined, config.loss.temperature
    judge, pairs = Judge(config, corpus), Pairs(config, corpus, model)

    def encode(params: Any, numbers: Any, lengths: Any, key: Any) -> Any:
        mask = jnp.arange(numbers.shape[1]) < lengths[:, None]
        return model.encoder.apply(
            {"params": params}, numbers, mask, train=True, rngs={"dropout": key}
        )

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        key_hard, key_which, key_queries, key_documents = jax.random.split(key, 4)
        size = batch["query"].shape[0]
        first = jnp.where(jax.random.bernoulli(key_hard, share, (size,)), 0, mined)
        which = first + jax.random.randint(key_which, (size,), 0, mined)
        negative, length = (
            jnp.take_along_axis(x, which.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]
            for x in (batch["candidates"], batch["candidate_length"])
        )
        queries = encode(params, batch["query"], batch["query_length"], key_queries)
        documents = encode(
            params,
            jnp.concatenate([batch["document"], negative]),
            jnp.concatenate([batch["document_length"], length]),
            key_documents,
        )
        value = multiple_negatives_ranking(
            queries, documents[:size], temperature=temperature,
            hard_negatives=documents[size:, None],
        )  # fmt: skip
        return value, ({}, model_state)

    return gradient_task(
        init_variables=model.init,
        loss=loss,
        optimizer=build_optimizer(config.optimizer, steps=config.train.steps),
        batches=lambda part=0, parts=1: pairs.batches(hard, part, parts),
        evaluate=lambda state: judge.validate(model, variables_of(state)),
        batch_spec=batch_spec(config),
    )


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains with random negatives, mines hard ones, trains again, compares, draws."""
    if not 0 <= config.negatives.hard_share <= 1:
        raise UserError(f"negatives.hard_share is {config.negatives.hard_share}, expected [0, 1]")
    corpus = Corpus(config)
    model = TextModel(config, corpus.training_texts)
    judge, progress = Judge(config, corpus), Progress()
    start = jax.jit(lambda key: nn.meta.unbox(model.init(key)))(jax.random.key(config.seed))
    found = {"start": judge.dense(model, start)} | judge.lexical()
    hard, options = None, {k: v for k, v in config.train.items() if k != "batch_size"}
    for stage in STAGES:
        started = time.perf_counter()
        inner = run.of_method(stage)
        model.tokenizer.save(str(inner.path / TOKENIZER))
        state = fit(
            task_of(config, corpus, model, hard), inner, seed=config.seed,
            mesh=make_mesh(config.mesh), progress=Progress(keys=("train/loss", "eval/ndcg")),
            **options,
        )  # fmt: skip
        found[stage] = judge.dense(model, variables_of(state))
        if hard is None:
            hard = Pairs(config, corpus, model).mine(judge, variables_of(state))
            progress.note(f"mined {hard.shape[1]} hard negatives for each of {len(hard)} pairs")
        draw_curves(inner.figure, inner.path, {"train/loss": "InfoNCE (nats)"})
        inner.write_summary(metrics={}, claims=[], seconds=time.perf_counter() - started)
        inner.close()
    metrics: dict[str, float] = {}
    for stage in STAGES:
        metrics |= compare(found, stage, seed=config.seed, prefix=f"{stage}_")
    drawing.draw_systems(run.figure, found)
    return metrics
