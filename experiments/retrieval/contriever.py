"""Contriever: two random spans of a document are each other's positive, keys wait in a queue.

Izacard et al., Unsupervised Dense Information Retrieval with Contrastive Learning,
arXiv:2112.09118. One encoder for queries and documents, the mean of its last hidden states, InfoNCE
against the keys of a momentum encoder (`loss.negatives` "queue") or of the batch ("batch", the
paper's other kind); spans are corrupted (`pairs.corruption`). Vectors have unit length, which is an
option of the authors' code.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.contrastive.common import draw_curves, momentum_task
from experiments.retrieval import drawing
from experiments.retrieval.corpus import Corpus
from experiments.retrieval.judge import Judge, compare
from experiments.retrieval.model import TOKENIZER, TextModel
from rml.contrastive import text_pairs
from rml.contrastive.infonce import info_nce
from rml.contrastive.queue import enqueue, init_queue
from rml.contrastive.text_pairs import PAIRS, Texts
from rml.errors import UserError, unknown
from rml.training import (
    Claim,
    Progress,
    RunDirectory,
    Task,
    TrainState,
    fit,
    make_mesh,
    over_batch,
)

SOURCE = "Contriever (arXiv:2112.09118), Tables 1 to 3; data and margins are this repository's"
NEGATIVES = ("queue", "batch")
CLAIMS = (
    Claim("nDCG@10 is above the random encoder's by 20 points, docstring to code",
          "docstring_to_code_ndcg_over_random", ">=", 0.2, SOURCE),
    Claim("nDCG@10 is above the encoder's before training, lower end of the 95% interval",
          "docstring_to_code_ndcg_over_start_low", ">=", 0.0, SOURCE),
    Claim("Recall@100 is above BM25's, lower end of the 95% interval",
          "docstring_to_code_recall_over_bm25_low", ">=", 0.0, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "systems_ndcg.png": "nDCG@10 on unseen modules, mean over queries and 95% interval.",
    "systems_recall.png": "Recall@100 on unseen modules, mean over queries and 95% interval.",
    "loss.png": "InfoNCE against steps.",
    "ndcg.png": "nDCG@10 on the validation modules against steps, mean of the tasks.",
}


def encode_texts(model: TextModel, variables: Any, texts: Texts, **options: Any) -> Any:
    """Vectors of texts given without the tokens at their ends."""
    special = model.special
    numbers, mask = text_pairs.with_ends(
        texts, first=special.first, last=special.last, padding=special.padding
    )
    return model.encoder.apply(variables, numbers, mask, **options)


def task(config: Any) -> Task:
    """The training problem of a config."""
    check(config)
    corpus = Corpus(config)
    model = TextModel(config, corpus.training_texts)
    return task_of(config, corpus, model)


def task_of(config: Any, corpus: Corpus, model: TextModel) -> Task:
    """The training problem of a config, with its data and model given."""
    size, pairs = config.train.batch_size, config.pairs
    temperature = config.loss.temperature
    special = model.special
    vocabulary = special.mask, special.words, special.vocabulary

    def make_views(key: Any, batch: Any) -> list[Texts]:
        key_pairs, *keys = jax.random.split(key, 3)
        made = text_pairs.pairs(
            pairs.name, key_pairs, Texts(batch["tokens"], batch["length"]),
            min_ratio=pairs.min_ratio, max_ratio=pairs.max_ratio, keep=pairs.keep,
        )  # fmt: skip
        return [
            text_pairs.corrupt(pairs.corruption, key, texts, rate=pairs.rate, vocabulary=vocabulary)
            for key, texts in zip(keys, made, strict=True)
        ]

    def encode(variables: Any, texts: Texts, key: Any) -> Any:
        return encode_texts(model, variables, texts, train=True, rngs={"dropout": key})

    def loss(params: Any, state: TrainState, batch: Any) -> Any:
        key_views, key_queries, key_keys = jax.random.split(state.step_key, 3)
        first, second = make_views(key_views, batch)
        variables = {"params": params, **state.model_state}
        queries = encode(variables, first, key_queries)
        if config.loss.negatives == "batch":
            keys = encode(variables, second, key_keys)
            value = over_batch(
                lambda q, k, axis_name=None: info_nce(
                    q, k, temperature=temperature, axis_name=axis_name
                )
            )(queries, keys)
            return value, (state.model_state, {})
        keys = jax.lax.stop_gradient(encode(state.extra["momentum"], second, key_keys))
        queue = state.extra["queue"]
        # Negatives are the queue's keys alone: those of the batch are, by label, left out.
        batch_label, queue_label = jnp.zeros(size, int), jnp.ones(len(queue.keys), int)
        value = info_nce(
            queries, keys, negatives=queue.keys, temperature=temperature,
            labels=(batch_label, jnp.concatenate([batch_label, queue_label])),
        )  # fmt: skip
        return value, (state.model_state, {"queue": enqueue(queue, keys)})

    def queue(key: Any) -> dict[str, Any]:
        if config.loss.negatives == "batch":
            return {}
        return {"queue": init_queue(key, size=config.queue.size, features=model.width)}

    judge = Judge(config, corpus)
    return momentum_task(
        config, model.init, loss=loss, averaged=("backbone",), extra=queue,
        around=dict(
            batches=lambda part=0, parts=1: corpus.batches(model.tokenizer, part, parts),
            evaluate=lambda state: judge.validate(model, variables_of(state)),
            batch_spec=corpus.batch_spec(),
        ),
    )  # fmt: skip


def check(config: Any) -> None:
    """Raises `UserError` where the config's pairs or negatives are unknown."""
    if config.pairs.name not in PAIRS:
        raise unknown("pairs.name", config.pairs.name, PAIRS)
    if config.pairs.corruption not in text_pairs.CORRUPTIONS:
        raise unknown("pairs.corruption", config.pairs.corruption, text_pairs.CORRUPTIONS)
    if config.loss.negatives not in NEGATIVES:
        raise unknown("loss.negatives", config.loss.negatives, NEGATIVES)
    low, high = config.pairs.min_ratio, config.pairs.max_ratio
    if not 0 < low <= high <= 1:
        raise UserError(
            f"pairs.min_ratio and pairs.max_ratio are {low} and {high}, expected "
            "0 < min_ratio <= max_ratio <= 1"
        )


def variables_of(state: TrainState) -> Any:
    """The variables with which a state's encoder is used."""
    return {"params": state.inference_params, **state.model_state}


def train(config: Any, run: RunDirectory, corpus: Corpus, model: TextModel) -> Any:
    """Trains, leaves the tokenizer beside the checkpoints, returns the encoder's variables."""
    file = run.path / TOKENIZER
    if not file.exists():
        model.tokenizer.save(str(file))
    options = {k: v for k, v in config.train.items() if k != "batch_size"}
    state = fit(
        task_of(config, corpus, model), run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", "eval/ndcg")), **options,
    )  # fmt: skip
    return variables_of(state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, retrieves from unseen modules beside BM25 and untrained encoders, draws."""
    check(config)
    corpus = Corpus(config)
    model = TextModel(config, corpus.training_texts)
    trained = train(config, run, corpus, model)
    judge, key = Judge(config, corpus), jax.random.key(config.seed)
    random = jax.jit(lambda key: nn.meta.unbox(model.random(key)))(key)
    found = {"trained": judge.dense(model, trained), "random": judge.dense(model, random)}
    if model.is_random:
        found["start"] = found["random"]
    else:
        found["start"] = judge.dense(model, nn.meta.unbox(model.init(key)))
    found |= judge.lexical()
    metrics = compare(found, "trained", seed=config.seed)
    drawing.draw_systems(run.figure, found)
    draw_curves(run.figure, run.path, {"train/loss": "InfoNCE (nats)", "eval/ndcg": "nDCG@10"})
    return metrics
