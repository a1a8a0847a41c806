"""Contriever's claims in quick form, and parts of its experiments where mistakes would hide."""

import json
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from flax.linen import meta
from ml_collections import ConfigDict

from configs.retrieval import contriever_ablation_pydocs, contriever_pydocs_random, finetune_pydocs
from experiments.retrieval import ablation
from experiments.retrieval.corpus import Corpus, pieces
from experiments.retrieval.finetune import Pairs
from experiments.retrieval.judge import Judge
from experiments.retrieval.model import TextModel
from rml.data import tokens
from rml.errors import UserError

Mapping.register(ConfigDict)  # it has a mapping's methods; the type checker wants it said

SMALL = {
    "model.width": 64, "model.depth": 1, "model.mlp": 128, "tokens.vocabulary": 2048,
    "evaluation.test_queries": 200, "evaluation.validation_queries": 50, "queue.size": 512,
    "train.batch_size": 64, "train.eval_every": 0, "data.train": "train[:20%]",
}  # fmt: skip


def overridden(config: ConfigDict, **changes) -> ConfigDict:
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = config
        for part in path:
            inner = inner[part]
        inner[last] = value
    return config


@pytest.fixture
def beir(tmp_path):
    """Forty documents of twelve words, each asked for by its first three."""
    rng = np.random.default_rng(0)
    words = [[f"w{n}" for n in rng.choice(300, 12, replace=False)] for _ in range(40)]
    documents = [{"_id": f"d{i}", "title": "", "text": " ".join(w)} for i, w in enumerate(words)]
    queries = [{"_id": f"q{i}", "text": " ".join(w[:3])} for i, w in enumerate(words)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels").mkdir()
    lines = [f"q{i}\td{i}\t1" for i in range(40)]
    for split in ("train", "test"):
        (tmp_path / "qrels" / f"{split}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n"
        )
    return tmp_path


def test_documents_are_cut_into_pieces_without_special_tokens():
    texts = ["a b c d e f g h i j k", "one two", "x", ""]
    tokenizer = tokens.train_tokenizer(texts * 3, vocabulary=300)
    whole = [one[1:-1] for one in tokens.encode(tokenizer, texts, max_length=1000)]
    cut = pieces(tokenizer, texts, length=8)
    rows = [row[:n].tolist() for row, n in zip(cut["tokens"], cut["length"], strict=True)]
    assert all(number >= len(tokens.SPECIAL) for row in rows for number in row)
    expected = []
    for one in whole:
        parts = [one[i : i + 8].tolist() for i in range(0, len(one), 8)]
        expected += [p for p in parts if len(p) >= 2]
    assert rows == expected
    with pytest.raises(UserError, match="2 documents"):
        pieces(tokenizer, ["", "x"], length=8)


def test_a_variant_changes_one_value_and_a_wrong_one_is_named():
    config = contriever_ablation_pydocs.get_config()
    changed = ablation.variant(config, "queue_256")
    assert changed.queue.size == 256
    assert config.queue.size != 256
    changed.queue.size = config.queue.size
    assert changed == config
    assert ablation.variant(config, "momentum_0_9").momentum.start == 0.9
    for change, message in (
        ("queue.sise=3", "key of the config"),
        ("nothing", "key=value"),
        ("queue.size=many", "int"),
        ("pairs.name=crop", "'crops'"),
    ):
        config.variants["wrong"] = change
        with pytest.raises(ValueError, match=message):
            ablation.variant(config, "wrong")


def small_finetune(path) -> ConfigDict:
    config = contriever_pydocs_random.get_config()
    overridden(config, **SMALL)
    config.tokens.update(dict(query_length=16, document_length=24, vocabulary=300))
    config.data.update(dict(name=f"beir:{path}", train="train", tasks=("default",)))
    config.negatives = finetune_pydocs.get_config().negatives
    config.train.batch_size = 8
    config.negatives.mined = 4
    return config


def test_negatives_are_never_the_answer_and_hard_ones_rank_high(beir):
    config = small_finetune(beir)
    corpus = Corpus(config)
    model = TextModel(config, corpus.training_texts)
    pairs, judge = Pairs(config, corpus, model), Judge(config, corpus)
    variables = meta.unbox(model.init(jax.random.key(0)))
    collection = corpus.collection("default", "train")
    hard = pairs.mine(judge, variables)
    assert hard.shape == (40, 4)
    assert not (hard == collection.qrels.document[:, None]).any()
    vectors = [judge.embed(model, variables, t) for t in (collection.queries, collection.documents)]
    scores = vectors[0] @ vectors[1].T
    scores[np.arange(40), collection.qrels.document] = -np.inf
    mined = np.take_along_axis(scores, hard, axis=1)
    best = -np.sort(-scores, axis=1)[:, :4]
    np.testing.assert_allclose(np.sort(mined), np.sort(best), rtol=1e-4)

    batch = next(iter(pairs.batches(hard, 0, 1)))
    own = {tuple(row) for row in batch["document"].tolist()}
    assert batch["candidates"].shape == (8, 8, 24)
    for document, candidates in zip(batch["document"], batch["candidates"], strict=True):
        assert not (candidates == document).all(axis=-1).any()
    assert len(own) == 8


def test_unsupervised_crops_beat_the_random_encoder(summarize):
    """On modules that training did not see; the margins are those of the full claim's sign."""
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    summary = summarize(
        "--config=configs/retrieval/contriever_pydocs_random.py", *flags,
        "--config.train.steps=300", "--config.train.checkpoint_every=300",
        "--config.optimizer.learning_rate=5e-3", "--config.data.tasks=('docstring_to_code',)",
    )  # fmt: skip
    metrics = summary["metrics"]
    assert metrics["docstring_to_code_ndcg_over_random_low"] > 0, metrics
    assert metrics["docstring_to_code_bm25_recall"] > 0.5, metrics
