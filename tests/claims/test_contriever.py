"""Contriever's claims in quick form, and parts of its experiments where mistakes would hide."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.retrieval import (
    contriever_ablation_pydocs,
    contriever_pydocs_random,
    finetune_pydocs,
    starts_pydocs,
)
from experiments.common.texts import TextModel, load_text_encoder
from experiments.registry import find_experiment
from experiments.retrieval import ablation, common, finetune, masked_lm, starts
from rml.contrastive import Masked, Texts
from rml.data import SpecialTokens, tokens
from rml.errors import UserError
from rml.losses import multiple_negatives_ranking
from rml.training import RunDirectory, initial_state
from tests.system.two_steps import override
from tests.texts import write_beir

SMALL = {
    "model.scan": False, "model.width": 64, "model.depth": 1, "model.mlp": 128,
    "tokens.vocabulary": 2048,
    "evaluation.test_queries": 200, "evaluation.validation_queries": 50, "queue.size": 512,
    "train.batch_size": 64, "train.eval_every": 0, "data.train": "train[:20%]",
}  # fmt: skip
QUICK = SMALL | {
    "train.steps": 200, "train.checkpoint_every": 0, "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 30, "model.mlp": 64, "evaluation.max_length": 64,
    "data.tasks": ("docstring_to_code",), "data.test": "test[:20%]",
    "data.validation": "validation[:10%]", "tokens.max_length": 64,
    "evaluation.batch_tokens": 65536,  # few shapes to compile
}  # fmt: skip


def write_texts(path):
    """Forty documents of twelve words, each asked for by its first three."""
    rng = np.random.default_rng(0)
    words = [[f"w{n}" for n in rng.choice(300, 12, replace=False)] for _ in range(40)]
    write_beir(
        path, [" ".join(w) for w in words], [" ".join(w[:3]) for w in words], "train", "test"
    )
    return path


@pytest.fixture
def beir(tmp_path):
    return write_texts(tmp_path)


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


def test_every_run_has_a_null_of_its_own():
    name = ablation.NULL.rpartition("_over_")[2]
    seeds = []
    for seed in (0, 1):
        config = contriever_ablation_pydocs.get_config()
        config.seed = seed
        again = ablation.variant(config, name)
        seeds += [seed, again.seed]
        again.seed = seed
        assert again == config
    assert len(set(seeds)) == 4
    config.variants[name] = "seed=1000"
    with pytest.raises(UserError, match=rf"variants\.{name} has a name that the comparison"):
        ablation.run(config, None)  # before anything is read


def small_finetune(path) -> ConfigDict:
    config = contriever_pydocs_random.get_config()
    override(config, SMALL)
    config.tokens.update(dict(query_length=16, document_length=24, vocabulary=300))
    config.data.update(
        dict(name=f"beir:{path}", train="train", validation="test", tasks=("default",))
    )
    config.negatives = finetune_pydocs.get_config().negatives
    config.train.batch_size = 8
    config.negatives.mined = 4
    return config


@pytest.mark.slow
def test_negatives_are_never_the_answer_and_hard_ones_rank_high(beir):
    config = small_finetune(beir)
    model = TextModel(config)
    encode = model.features(jax.jit(model.init)(jax.random.key(0)))
    collection = model.corpus.collection("default", "train")
    hard = finetune.mine(config, model, encode)
    assert hard.shape == (40, 4)
    assert not (hard == collection.qrels.document[:, None]).any()
    vectors = encode(collection.queries), encode(collection.documents)
    scores = vectors[0] @ vectors[1].T
    scores[np.arange(40), collection.qrels.document] = -np.inf
    mined = np.take_along_axis(scores, hard, axis=1)
    best = -np.sort(-scores, axis=1)[:, :4]
    np.testing.assert_allclose(np.sort(mined), np.sort(best), rtol=1e-4)

    batch = next(iter(finetune.batches(config, model, hard)))
    own = {tuple(row) for row in batch["document"].tolist()}
    assert batch["candidates"].shape == (8, 8, 24)
    for document, candidates in zip(batch["document"], batch["candidates"], strict=True):
        assert not (candidates == document).all(axis=-1).any()
    assert len(own) == 8


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [False, True])
def test_documents_that_are_known_to_answer_are_no_negatives(beir, exchange):
    config = small_finetune(beir)
    config.negatives.mined, config.negatives.exchange = 1, exchange
    model = TextModel(config)
    problem, rng = finetune.task(config, model), np.random.default_rng(0)
    batch = next(iter(problem.batches()))
    assert not batch["document_known"].any()  # one answer a query
    for key in ("document_known", "candidates_known"):
        batch[key] = rng.random(batch[key].shape) < 0.4
    state = initial_state(problem, seed=0)

    @jax.jit
    def encode(numbers, length):
        mask = jnp.arange(numbers.shape[1]) < length[:, None]
        return model.module.apply(state.variables, numbers, mask)

    queries = encode(batch["query"], batch["query_length"])
    answers = encode(batch["document"], batch["document_length"])
    # The second candidate of two, as there are no hard ones.
    drawn = encode(batch["candidates"][:, 1], batch["candidates_length"][:, 1])
    known = batch["document_known"]
    if exchange:
        answers, known = np.roll(answers, 1, axis=0), np.roll(known, 1, axis=1)
    expected = jax.jit(partial(multiple_negatives_ranking, temperature=config.loss.temperature))(
        queries, answers, hard_negatives=drawn[:, None],
        false_negatives=np.concatenate([known, batch["candidates_known"][:, :, 1]], axis=1),
    )  # fmt: skip
    # The gradient, of which nothing is read, is not compiled.
    loss = jax.jit(lambda state, batch: problem.step(state, batch)[1]["loss"])(state, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["retrieval.contriever", "retrieval.finetune"])
def test_a_run_is_held_against_what_its_training_starts_from(beir, tmp_path, experiment):
    """With a rate of zero it stays there."""
    config = small_finetune(beir)
    config.experiment, config.optimizer.learning_rate = experiment, 0.0
    config.train.update(dict(steps=2, checkpoint_every=2))
    config.optimizer.warmup_steps = 1
    config.negatives.hard_share = 0.5
    run = RunDirectory(tmp_path / "run", config.to_dict())
    metrics = find_experiment(experiment).run(config, run)
    run.close()
    held = [key for key in metrics if key.endswith("_ndcg_over_start")]
    assert len(held) == (1 if experiment == "retrieval.contriever" else 2)
    assert [metrics[key] for key in held] == [0.0] * len(held)


def test_unseen_documents_are_of_the_test_split_and_not_trained_on(beir, monkeypatch):
    config = small_finetune(beir)
    with pytest.raises(UserError, match=r"data\.name is 'beir:.*all of whose test documents"):
        masked_lm.unseen_documents(config, TextModel(config))
    config.data.update(dict(name="manuals", train="train", test="test"))
    read = {"train": ["one", "two"], "test": ["three", "two", "four"]}
    monkeypatch.setattr(masked_lm, "load_documents", lambda _, split, **__: read[split])
    corpus = SimpleNamespace(training_texts=read["train"])
    found = masked_lm.unseen_documents(config, SimpleNamespace(corpus=corpus))
    assert found == ["three", "four"]


def test_words_are_drawn_among_those_that_were_learned(beir):
    config = small_finetune(beir)
    config.tokens.vocabulary = 4096
    model = TextModel(config)
    assert model.special.drawn == (4, 5, 4096)
    learned = model.tokenizer.get_vocab_size()
    assert learned < 4096
    assert model.special.drawn == (4, 5, learned)


def small_run(config: ConfigDict, path, method: str = "") -> Path:
    """The directory of a short training run."""
    run = RunDirectory(path, config.to_dict())
    run = run.of_method(method) if method else run
    config = ConfigDict(run.config)
    experiment = find_experiment(config.experiment)
    model = TextModel(ablation.variant(config, method) if method else config)
    common.train_encoder(config, run, experiment.task(config), model)
    run.write_summary(metrics={}, claims=[], seconds=1.0)
    run.close()
    return run.path


@pytest.mark.parametrize("experiment", ["retrieval.contriever", "retrieval.finetune"])
def test_a_batch_of_more_texts_than_there_are_is_named_and_leaves_nothing(
    beir, tmp_path, experiment
):
    config = small_finetune(beir)
    config.experiment, config.train.batch_size = experiment, 64
    run = RunDirectory(tmp_path / "run", config.to_dict())
    model = TextModel(config)
    with pytest.raises(UserError) as caught:
        common.train_encoder(config, run, find_experiment(experiment).task(config, model), model)
    assert str(caught.value) == (
        f"batch_size=64 is larger than the 40 examples of 'beir:{beir}' split 'train': take "
        "at most 40"
    )
    assert (run.path / "tokenizer.json").exists()
    run.abandon()
    assert not run.path.exists()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A variant of a short ablation: its texts, the config and the variant's directory."""
    texts = write_texts(tmp_path_factory.mktemp("narrow"))
    config = small_finetune(texts)
    config.train.update(dict(steps=2, checkpoint_every=2))
    config.optimizer.warmup_steps = 1
    config.experiment = "retrieval.ablation"
    config.variants = {"narrow": "model.width=32"}
    return texts, config, small_run(config, texts / "run", "narrow")


@pytest.mark.slow
def test_a_run_starts_from_the_encoder_of_another(narrow, tmp_path):
    """Twice over: random, pretrained without labels, fine-tuned."""
    beir, config, first = narrow
    config = config.copy_and_resolve_references()
    trained = load_text_encoder(first)
    config.experiment = "retrieval.finetune"
    config.model = dict(name="run", run=str(first))
    del config.tokens.vocabulary, config.tokens.positions
    (beir / "corpus.jsonl").rename(beir / "moved.jsonl")  # the run's own tokenizer is read
    ended = (first / "summary.json").read_bytes()
    (first / "summary.json").unlink()
    with pytest.raises(UserError, match=rf"model\.run is '{first}', a run that has not ended"):
        TextModel(config)
    (first / "summary.json").write_bytes(ended)
    start = TextModel(config)
    texts = ["w1 w2 w3", "w4"]
    np.testing.assert_array_equal(
        start.features(start.init(jax.random.key(1)))(texts), trained(texts)
    )
    (beir / "moved.jsonl").rename(beir / "corpus.jsonl")
    path = small_run(config, tmp_path / "second")
    second = load_text_encoder(path)(texts)
    assert second.shape == trained(texts).shape
    assert np.abs(second - trained(texts)).max() > 0
    first.rename(tmp_path / "away")  # a trained encoder needs no run but its own
    np.testing.assert_array_equal(load_text_encoder(path)(texts), second)
    (path / "encoder.json").unlink()
    with pytest.raises(UserError, match=rf"model\.run is '{first}'"):
        load_text_encoder(path)
    (tmp_path / "away").rename(first)


@pytest.mark.slow
def test_a_variant_of_the_ablation_is_loaded_as_it_was_trained(narrow):
    beir, _, path = narrow
    assert load_text_encoder(path)(["w1 w2"]).shape == (1, 32)
    with pytest.raises(UserError, match="compares methods"):
        load_text_encoder(beir / "run")


def test_queues_are_compared_query_by_query():
    rng = np.random.default_rng(0)
    shortest = rng.uniform(size=100)
    queues = {4096.0: rng.uniform(size=100), 8192.0: shortest + 0.1, 256.0: shortest}
    found = ablation.longest_over_shortest(queues)
    assert len(found) == 3
    np.testing.assert_allclose(list(found.values()), 0.1, atol=1e-6)  # what all queries share
    assert {claim.metric for claim in ablation.CLAIMS} & set(found)
    assert ablation.longest_over_shortest({256.0: shortest}) == {}


@pytest.mark.slow
def test_a_hidden_token_is_predicted_from_its_own_place(monkeypatch):
    """States that say which token is seen predict the tokens that stayed, and no others."""
    special = SpecialTokens.trained(300)
    copying = SimpleNamespace(apply=lambda _, numbers, *rest, **named: jax.nn.one_hot(numbers, 300))
    model = SimpleNamespace(module=SimpleNamespace(backbone=copying), special=special)
    head = SimpleNamespace(apply=lambda _, states, table: 100 * states @ table.T)
    monkeypatch.setattr(masked_lm, "lm_head", lambda config: head)
    config = ConfigDict(dict(masking=dict(rate=0.5)))
    params = {"head": {}, "backbone": {"tokens": {"embedding": jnp.eye(300)}}}
    drawn = np.random.default_rng(0).integers(special.words, 300, (200, 20))
    texts = Texts(jnp.asarray(drawn), jnp.full(200, 20))
    found = masked_lm.predict(config, model, params, texts, jax.random.key(0), train=True)
    seen = np.take_along_axis(np.asarray(found.hidden.texts.tokens), found.hidden.places, axis=1)
    kept = (seen == found.hidden.targets).mean(axis=1)
    assert 0.05 < kept.mean() < 0.2
    np.testing.assert_allclose(found.right, kept, rtol=1e-6)
    np.testing.assert_allclose(found.nats, 100 * (1 - kept), rtol=1e-4, atol=1e-4)


def test_frequencies_are_those_of_the_training_texts(beir):
    config = small_finetune(beir)
    model = TextModel(config)
    read = tokens.encode(
        model.tokenizer, model.corpus.training_texts, max_length=1000, special=False
    )
    counts = np.bincount(np.concatenate(read), minlength=300) + 1
    targets, chosen = np.array([[20, 75], [99, 5]]), np.array([[True, True], [True, False]])
    hidden = Masked(Texts(targets, np.array([2, 2])), targets, targets, chosen)
    nats = -np.log(counts / counts.sum())
    expected = [(nats[20] + nats[75]) / 2, nats[99]]
    np.testing.assert_allclose(masked_lm.by_frequency(config, model, hidden), expected, rtol=1e-6)


def test_a_rate_is_chosen_by_validation_the_first_of_equal_ones():
    tried = {
        name: {"validation_ndcg": ndcg} for name, ndcg in zip("abc", (0.1, 0.3, 0.3), strict=True)
    }
    assert starts.chosen(tried) == "b"


def test_every_claim_on_starts_is_of_systems_that_are_compared():
    measured = {
        f"{ours}_{metric}_over_{other}"
        for ours, others in starts.COMPARED.items() for other in others
        for metric in ("ndcg", "recall")
    }  # fmt: skip
    assert {name for claim in starts.CLAIMS for name in (claim.metric, claim.null)} <= measured
    trained = {"random", *starts.PRETRAINED}
    lexical = {"bm25", "bm25_code"}
    systems = trained | {f"{name}{starts.TUNED}" for name in trained} | lexical
    assert set(starts.COMPARED) | {o for others in starts.COMPARED.values() for o in others} <= (
        systems
    )


@pytest.mark.slow
def test_each_stage_starts_from_the_one_before(beir, tmp_path, monkeypatch):
    """Contriever with a rate of zero gives what it started from, and so does what follows."""
    stages = ("masked_lm", "contriever")
    monkeypatch.setattr(starts, "PRETRAINED", {name: starts.PRETRAINED[name] for name in stages})
    monkeypatch.setattr(starts, "COMPARED", {"contriever": ("masked_lm",)})
    config = starts_pydocs.get_config()
    override(config, SMALL | {
        "model.width": 32, "model.mlp": 32, "model.heads": 2, "tokens.vocabulary": 300,
        "tokens.query_length": 16, "tokens.document_length": 24, "negatives.mined": 2,
        "data.name": f"beir:{beir}", "data.train": "train", "data.validation": "test",
        "data.test": "test", "data.tasks": ("default",), "queue.size": 64, "train.steps": 24,
        "train.batch_size": 8, "train.checkpoint_every": 24, "finetune_rates": (1e-2, 1e-3),
        "optimizer.warmup_steps": 5,
        "variants.masked_lm": "optimizer.learning_rate=1e-2",
        "variants.contriever": "optimizer.learning_rate=0",
        "variants.finetune": "data.train=train",
    })  # fmt: skip
    run, train, steps = RunDirectory(tmp_path / "run", config.to_dict()), common.train_encoder, []

    def recorded(own, inner, problem, model):
        steps.append(problem.step)
        return train(own, inner, problem, model)

    monkeypatch.setattr(common, "train_encoder", recorded)
    metrics = starts.run(config, run)
    run.close()
    assert len(steps) == 2 + 3 * 2
    assert len(set(steps)) == 2 + 2, "trainings that differ in their start alone share a step"
    assert metrics["contriever_ndcg"] == metrics["masked_lm_ndcg"] != metrics["random_ndcg"]
    assert metrics["contriever_ndcg_over_masked_lm"] == 0
    tuned = [metrics[f"{name}_tuned_ndcg"] for name in ("contriever", "masked_lm", "random")]
    assert tuned[0] == tuned[1] != tuned[2]
    assert metrics["rate_at_edge_contriever"] == 1
    assert min(tuned) > 0.5 > metrics["masked_lm_ndcg"]  # on the queries that were tuned on
    texts = ["w1 w2 w3", "w4"]
    methods = tmp_path / "run" / "methods"
    first, then, last = (
        load_text_encoder(methods / name)(texts)
        for name in ("masked_lm", "contriever", "contriever_tuned_0.01")
    )
    np.testing.assert_array_equal(first, then)
    assert np.abs(last - then).max() > 0.01
    assert (tmp_path / "run" / "figures" / starts.PICTURE).stat().st_size > 1000


def test_claims_on_starts_are_of_systems_that_are_compared():
    known = {
        f"{ours}_{metric}_over_{other}"
        for ours, others in starts.COMPARED.items()
        for other in others
        for metric in common.METRICS
    }
    assert {name for claim in starts.CLAIMS for name in (claim.metric, claim.null)} <= known
    shown = set(starts.LABELS) | {f"{name}{starts.TUNED}" for name in starts.LABELS}
    assert {*starts.COMPARED, *starts.PRETRAINED} <= shown


def test_what_has_no_text_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.run is '/nowhere'"):
        load_text_encoder(Path("/nowhere"))
    config = {"experiment": "contrastive.simclr", "data": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"simclr.*expected one with a text encoder"):
        load_text_encoder(tmp_path)
    config = {"experiment": "retrieval.contriever", "tokens": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_text_encoder(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("pydocs", "optimised_steps")
def test_unsupervised_crops_beat_the_random_encoder(measure):
    """On modules that training did not see; the margins are those of the full claim's sign."""
    metrics, _ = measure("configs/retrieval/contriever_pydocs_random.py", QUICK)
    assert metrics["docstring_to_code_ndcg_over_random_low"] > 0, metrics
    assert metrics["docstring_to_code_bm25_recall"] > 0.5, metrics
