"""Fine-tuning a retriever on queries with their documents, with random and then hard negatives.

Izacard et al., arXiv:2112.09118, Section 4.3 and Appendix: InfoNCE over the documents of the batch
and one more negative a query; first a random document, then, from the start again, in one of ten
queries a document that the first model ranks high and that is not the answer.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.pretraining import first_state
from experiments.common.texts import TextModel, text_encoder
from experiments.retrieval import common
from rml.errors import UserError
from rml.evaluation import compare_systems
from rml.losses import multiple_negatives_ranking
from rml.retrieval import TextEmbedder, hard_negatives, pair_batches, pair_spec, random_negatives
from rml.training import (
    Claim,
    Loss,
    Progress,
    RunDirectory,
    Task,
    TrainState,
    gradient_task,
)

SOURCE = "Contriever (arXiv:2112.09118), Section 4.3; data and margins are this repository's"
CLAIMS = (
    Claim("Fine-tuning with random negatives raises nDCG@10",
          "docstring_to_code_random_negatives_ndcg_over_start", ">=", 0.0, SOURCE,
          stated="2026-11-25", null_run="strangers",
          says="Fine-tuning with random negatives changes nDCG@10 by {mean:+.1p} points "
          "({docstring_to_code_random_negatives_ndcg:.1%} against "
          "{docstring_to_code_start_ndcg:.1%})"),
)  # fmt: skip
NULLS = {"strangers": {"negatives.exchange": True}}
STAGES = ("random_negatives", "hard_negatives")
CAPTIONS = common.CAPTIONS
PICTURE = "systems_ndcg.png"
STAGED = True  # the first stage mines the negatives of the second


def batches(config: Any, model: TextModel, hard: Any, part: int = 0, parts: int = 1) -> Any:
    """Batches of pairs, each with its `hard` documents, if any, before as many random ones."""
    collection = model.corpus.collection(config.data.tasks[0], "train")
    mined, count = config.negatives.mined, len(collection.documents)
    if count <= mined:
        raise UserError(
            f"negatives.mined is {mined}, expected fewer than the {count} documents of data.train"
        )
    # The stages draw apart: two with random negatives alone would be one and the same run.
    rng = np.random.default_rng([config.seed, 2 if hard is None else 3])
    drawn = random_negatives(collection.answers.document, documents=count, count=mined, rng=rng)
    candidates = np.concatenate([drawn if hard is None else hard, drawn], axis=1)
    return pair_batches(
        model.tokenizer, collection, candidates, pad_id=model.special.padding,
        lengths=(config.tokens.query_length, config.tokens.document_length),
        name=config.data.name, split=config.data.train,
        batch_size=config.train.batch_size, seed=config.seed, part=part, parts=parts,
    )  # fmt: skip


def task(config: Any, model: TextModel | None = None, hard: Any = None) -> Task:
    """The training problem with random negatives, or with these hard ones for each pair."""
    model = model or TextModel(config)
    mined, share = config.negatives.mined, 0.0 if hard is None else config.negatives.hard_share
    lengths = config.tokens.query_length, config.tokens.document_length
    contrast = partial(multiple_negatives_ranking, temperature=config.loss.temperature)

    def encode(variables: Any, numbers: Any, length: Any, key: Any) -> Any:
        mask = jnp.arange(numbers.shape[1]) < length[:, None]
        return model.module.apply(variables, numbers, mask, train=True, rngs={"dropout": key})

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        key_hard, key_which, key_queries, key_documents = jax.random.split(state.step_key, 4)
        variables, rows = state.training_variables(params), jnp.arange(len(batch["query"]))
        first = jnp.where(jax.random.bernoulli(key_hard, share, rows.shape), 0, mined)
        which = first + jax.random.randint(key_which, rows.shape, 0, mined)
        queries = encode(variables, batch["query"], batch["query_length"], key_queries)
        texts, length = (
            jnp.concatenate([batch[f"document{end}"], batch[f"candidates{end}"][rows, which]])
            for end in ("", "_length")
        )
        answers, negatives = jnp.split(encode(variables, texts, length, key_documents), 2)
        known = batch["document_known"]
        if config.negatives.get("exchange", False):  # the null: answers to other queries
            answers, known = jnp.roll(answers, 1, axis=0), jnp.roll(known, 1, axis=1)
        known = jnp.concatenate([known, batch["candidates_known"][:, rows, which]], axis=1)
        return Loss(
            contrast(queries, answers, hard_negatives=negatives[:, None], false_negatives=known)
        )

    return gradient_task(
        loss=loss, batches=partial(batches, config, model, hard),
        batch_spec=pair_spec(config.train.batch_size, lengths=lengths, candidates=2 * mined),
        **common.surroundings(config, model),
    )  # fmt: skip


def encoder(config: Any, state: TrainState) -> TextEmbedder:
    """The vectors of texts that a trained state gives."""
    return text_encoder(config, state)


def mine(config: Any, model: TextModel, encode: TextEmbedder) -> np.ndarray:
    """Documents that rank highest for each pair's query and do not answer it."""
    collection = model.corpus.collection(config.data.tasks[0], "train")
    query, document, _ = collection.answers
    vectors = encode(collection.queries), encode(collection.documents)
    return hard_negatives(
        *vectors, query=query, document=document, count=config.negatives.mined, own=collection.own
    )


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains with random negatives, mines hard ones, trains again, compares, draws."""
    if not 0 <= config.negatives.hard_share <= 1:
        raise UserError(f"negatives.hard_share is {config.negatives.hard_share}, expected [0, 1]")
    model, key = TextModel(config), jax.random.key(config.seed)
    judge = common.RetrievalEvaluator(config, model.corpus)
    problem = task(config, model)
    before = first_state(config, problem).variables
    found = {"start": judge.dense(model.features(before))} | judge.lexical()
    hard: np.ndarray | None = None

    def measure(stage: str, inner: RunDirectory) -> tuple[dict[str, float], common.Results]:
        nonlocal hard
        own = problem if hard is None else task(config, model, hard)
        trained = common.train_encoder(config, inner, own, model)
        figures.training_curves(inner.figure, inner.path, {"train/loss": "InfoNCE (nats)"})
        if hard is None:
            hard = mine(config, model, trained)
            Progress().note(f"mined {hard.shape[1]} hard negatives for each of {len(hard)} pairs")
        return {}, judge.dense(trained)

    found |= {stage: results for stage, (_, results) in for_each(run, STAGES, measure).items()}
    common.draw_systems(run.figure, found)
    first, then = (compare_systems(found, s, key=key, prefix=f"{s}_") for s in STAGES)
    return first | then
