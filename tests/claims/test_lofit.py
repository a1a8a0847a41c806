"""LoFiT's recipe on a tiny encoder and made-up texts; `make claims` measures MiniLM."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs.sparsity import lofit as config_file
from configs.sparsity import lofit_smollm2
from experiments.sparsity import (
    lofit,
    lofit_ablations,
    lofit_arms,
    lofit_measures,
    lofit_tasks,
)
from experiments.sparsity.lofit_arms import Arm
from rml.data import tokens
from rml.data.text import LabelledTexts
from rml.errors import UserError
from rml.models import Bert, HeadEdits, Llama
from rml.sparsity import Directions, load_edits, save_edits
from rml.training import RunDirectory
from tests.system.two_steps import override, read

SMALL = {
    "sample.anchors": 10, "sample.texts": 10, "sample.validation": 10, "sample.test": 10,
    "sample.length": 8, "head.classes": 3, "shares": (0.05, 0.1, 1.0), "draws": 2, "sizes": (5,),
    "train.steps": 3, "train.batch_size": 4, "timing.repeats": 2,
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """A random encoder in the place of MiniLM, words by class in that of texts."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 80).astype(np.int32)
    texts = [" ".join(f"w{rng.integers(4 * own, 4 * own + 6)}" for _ in range(4)) for own in labels]
    tokenizer = tokens.train_tokenizer(texts, vocabulary=280)
    module = Bert(vocabulary=280, width=32, depth=2, heads=16, mlp=32, positions=8)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    loaded = SimpleNamespace(
        module=module, variables=variables, tokenizer=tokenizer, pooling="mean"
    )
    found = LabelledTexts(texts, labels, ("a", "b", "c"))
    monkeypatch.setattr(lofit_tasks.pretrained, "load", lambda name: loaded)
    monkeypatch.setattr(lofit_tasks.data, "load_text", lambda *_, **__: found)
    return loaded


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(tiny, measure, tmp_path, monkeypatch):
    monkeypatch.setattr(lofit, "WEIGHTS", ("lora_8", "biases", "red"))  # those that are compared
    path = "configs/sparsity/lofit.py"
    RunDirectory(tmp_path / "run", override(read(path), SMALL).to_dict()).close()
    file = tmp_path / "run" / "edits.safetensors"
    save_edits(file, HeadEdits(offset=jnp.ones((1, 2, 3))))  # of an older config
    metrics, holds = measure(path, SMALL)
    assert len(holds) == len(lofit.CLAIMS)
    for name in ("numbers_ratio_least", "numbers_ratio_least_all", "state_share"):
        assert metrics[f"{name}_low"] == metrics[name] == metrics[f"{name}_high"] > 0
    for name in ("step_share", "step_share_full"):
        assert 0 < metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["numbers_lofit_0.1"] == metrics["numbers_random_0"] == 3 * 2
    assert metrics["numbers_lofit_1"] == 32 * 2
    assert metrics["numbers_lora_8"] == 8 * 2 * 4 * 64
    assert metrics["numbers_biases"] == 2 * (4 * 32 + 32 + 32 + 2 * 32) + 32
    assert metrics["numbers_red"] == 2 * 2 * 32
    assert metrics["folded_error"] < 1e-5
    assert metrics["folded_flops_added"] == 0 < metrics["lora_flops_added"]
    gains = ("random", "other", "gradient", "bias_norm", "probes", "iti", "frozen")
    for name in gains:
        apart = metrics["accuracy_lofit_0.1"] - metrics[f"accuracy_{name}"]
        assert metrics[f"gain_over_{name}"] == pytest.approx(apart, abs=1e-6)
    apart = metrics["accuracy_lora_8_of_5"] - metrics["accuracy_lofit_of_5"]
    assert metrics["deficit_to_lora_of_5"] == pytest.approx(apart, abs=1e-6)
    assert all(abs(metrics[f"transfer_{task}"]) <= 1 for task in ("debian", "questions"))
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(lofit.CAPTIONS)
    kept = load_edits(tmp_path / "run" / "edits.safetensors")
    assert (np.abs(kept.offset).max(-1) > 0).sum() == 3
    assert metrics["edits_bytes"] < 500


WORDS = ("red", "green", "blue", "cat", "dog", "sun")


@pytest.fixture(scope="module")
def whole_words():
    """A tokenizer that has six words whole, with the space before them."""
    rng = np.random.default_rng(0)
    lines = [" " + " ".join(rng.permutation(WORDS)) for _ in range(50)]
    return tokens.train_tokenizer(lines, vocabulary=300)


def ids(tokenizer, *words):
    """Numbers of words that are one token each."""
    found = [tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in words]
    assert {len(own) for own in found} == {1}
    return [own[0] for own in found]


@pytest.mark.slow
def test_a_small_run_of_a_decoder_prefers_words(whole_words, monkeypatch, measure, tmp_path):
    rng = np.random.default_rng(0)
    names = ("noun.red", "verb.red", "green", "blue", "adj.all")
    labels = rng.integers(0, 5, 120).astype(np.int32)
    texts = [" ".join(WORDS[(own + rng.integers(3)) % 6] for _ in range(4)) for own in labels]
    tokenizer = whole_words
    module = Llama(vocabulary=300, width=32, depth=2, heads=16, kv_heads=8, mlp=32, tied=True)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    variables = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)
    loaded = SimpleNamespace(module=module, variables=variables, tokenizer=tokenizer, pooling="")
    monkeypatch.setattr(lofit_tasks.pretrained, "load", lambda name: loaded)
    found = LabelledTexts(texts, labels, names)
    monkeypatch.setattr(lofit_tasks.data, "load_text", lambda *_, **__: found)
    changes = {
        "sample.texts": 10, "sample.validation": 10, "sample.test": 10, "sample.length": 12,
        "head.classes": 4, "shares": (0.05, 0.1, 1.0), "train.steps": 3, "train.batch_size": 4,
        "timing.repeats": 2,
        "data.prompts": {"wordnet": "cat {} dog", "questions": "dog {} sun"},
    }  # fmt: skip
    metrics, holds = measure("configs/sparsity/lofit_smollm2.py", changes)
    assert len(holds) == len(lofit.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    # Scales of five norms stand where there are no biases.
    assert metrics["numbers_biases"] == 5 * 32
    assert metrics["numbers_lofit_0.1"] == 3 * 2
    assert metrics["folded_error"] < 1e-5
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(lofit.CAPTIONS)


def test_words_of_classes_are_one_token_each_and_equal_words_one_class(whole_words):
    one = ids(whole_words, "red", "sun")
    names = ("noun.sun", "red", "KIND:red", "reddog", "adj.red")
    words = lofit_tasks.words_of(whole_words, names, left_out=("adj.red",))
    np.testing.assert_array_equal(words.tokens, sorted(one))
    place = {token: at for at, token in enumerate(sorted(one))}
    np.testing.assert_array_equal(
        words.number, [place[one[1]], place[one[0]], place[one[0]], -1, -1]
    )
    params = {"tokens": {"embedding": jnp.arange(300 * 2.0).reshape(300, 2)}}
    model = lofit_tasks.Model(None, params, None)
    found = lofit_tasks.directions(model, words, 3)
    np.testing.assert_array_equal(found[:, 0], [2 * min(one), 2 * max(one), 0])
    head = {"head": {"kernel": -params["tokens"]["embedding"].T}, **params}
    untied = lofit_tasks.directions(model._replace(params=head), words, 3)
    np.testing.assert_array_equal(untied, -found)


def test_a_prompt_is_kept_whole_and_the_text_is_cut(whole_words):
    spoken = ["red green blue cat dog", "cat"]
    found, mask = lofit_tasks.encoded(whole_words, spoken, 5, " sun {} dog")
    wanted = [["sun", "red", "green", "blue", "dog"], ["sun", "cat", "dog"]]
    for row, seen, words in zip(found, mask, wanted, strict=True):
        own = ids(whole_words, *words)
        np.testing.assert_array_equal(row[: len(own)], own)
        np.testing.assert_array_equal(seen, np.arange(5) < len(own))


def test_texts_without_a_class_are_never_drawn(whole_words):
    config = lofit_smollm2.get_config()
    config.sample.length = 12
    labels = np.array([2, -1, 0, 1, -1, 0], np.int32)
    found = LabelledTexts(list(WORDS), labels, ("reddog", "dog", "cat"))
    model = lofit_tasks.Model(None, None, whole_words)

    def draw(count):
        rng = np.random.default_rng(0)
        return lofit_tasks.drawn(config, model, "wordnet", "train", found, count, rng)

    number = lofit_tasks.words_of(whole_words, found.class_names).number
    assert number[0] == -1
    assert sorted(draw(2).label.tolist()) == sorted(number[1:].tolist()) == [0, 1]
    with pytest.raises(UserError, match="wordnet has 2 texts of train, expected 3"):
        draw(3)


def test_wrong_classes_are_drawn_by_the_models_odds(monkeypatch):
    z = jnp.tile(jnp.array([[1.0, -0.5]]), (400, 1))
    monkeypatch.setattr(lofit_tasks, "vectors", lambda *_: z)
    encoder = lofit_tasks.Encoder(None, "last", 2.0, unit=False, beta=0.5)
    rows = jnp.array([[1.0, 0.0], [0.0, -2.0], [0.3, 0.1], [0.0, 0.0]])  # the last is no class
    label = jnp.array([0, 1] * 200)
    texts = lofit_tasks.Texts(jnp.ones((400, 3), int), jnp.ones((400, 3), bool), label)
    model = lofit_tasks.Model(encoder, None, None)
    own = lofit_tasks.against_wrong(model, texts, rows, np.random.default_rng(0))
    logits = np.array([2.0, 2.0, 0.5])
    apart = logits[np.asarray(label)] - logits[np.asarray(own.rejected)]
    np.testing.assert_allclose(own.margin, apart, rtol=1e-6)
    assert not (np.asarray(own.rejected) == np.asarray(label)).any()
    # Of the two wrong classes the likelier is drawn e^1.5 times as often.
    share = np.mean(np.asarray(own.rejected) != 2)
    assert share == pytest.approx(1 / (1 + np.exp(-1.5)), abs=0.06)


@pytest.mark.slow
def test_the_preference_loss_is_that_of_logits_above_the_frozen_models(tiny):
    model = lofit_tasks.load_model(config_file.get_config())
    encoder = model.encoder._replace(unit=False, scale=0.3, beta=0.7)
    own, mask = lofit_tasks.encoded(model.tokenizer, ["w1 w2", "w9 w8"], 8)
    margin = jnp.array([0.2, -0.4])
    texts = lofit_tasks.Texts(own, mask, jnp.array([2, 0]), jnp.array([1, 2]), margin)
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 32)))
    z = np.asarray(lofit_tasks.vectors(model._replace(encoder=encoder), texts), np.float64)
    assert not np.allclose(np.linalg.norm(z, axis=-1), 1)
    logits = 0.3 * z @ np.asarray(rows, np.float64).T
    gain = logits[[0, 1], [2, 0]] - logits[[0, 1], [1, 2]] - np.asarray(margin)
    found = lofit_tasks.task_loss(encoder, model.params, None, texts, rows)
    np.testing.assert_allclose(found, np.mean(np.log1p(np.exp(-0.7 * gain))), rtol=1e-5)


def test_fewer_texts_repeat_until_the_steps_are_as_many():
    label = jnp.arange(6).reshape(3, 2)
    texts = lofit_tasks.Texts(jnp.stack([label, -label], -1), label[..., None] > 2, label)
    own = lofit_ablations.fewer(lofit_tasks.Bed(texts, jnp.ones(2)), 4).train
    np.testing.assert_array_equal(own.label, [[0, 1], [2, 3], [0, 1]])
    np.testing.assert_array_equal(own.tokens[..., 1], -own.label)
    np.testing.assert_array_equal(own.mask[..., 0], own.label > 2)


def test_edits_that_were_tuned_on_one_task_are_read_on_others(tiny, monkeypatch):
    config = config_file.get_config()
    config.update({"sample": {"validation": 10, "length": 8}, "head": {"classes": 3}})
    model = lofit_tasks.load_model(config)
    seen = []

    def hits(model, texts, own, edits):
        seen.append((texts.label.tolist(), own, edits))
        return np.arange(10) < (7 if edits else 4)

    monkeypatch.setattr(lofit_ablations, "hits", hits)
    beds = {task: [lofit_tasks.Bed(None, f"of {task}")] for task in config.data.others}
    found = lofit_ablations.transferred(config, model, beds, "edits")
    assert [found["transfer_debian"], found["transfer_questions"]] == pytest.approx([0.3, 0.3])
    assert [own for _, own, _ in seen] == ["of debian"] * 2 + ["of questions"] * 2
    assert len(seen[0][0]) == 10


def test_a_class_beyond_the_head_is_named(tiny):
    config = config_file.get_config()
    config.head.classes = 2
    with pytest.raises(UserError, match=r"wordnet has texts of class 2, .* below head.classes=2"):
        lofit_tasks.read(
            config, lofit_tasks.load_model(config), "wordnet", "test", 5, np.random.default_rng(0)
        )


@pytest.mark.slow
def test_a_class_without_texts_is_never_named_nor_trained(tiny):
    config = config_file.get_config()
    model = lofit_tasks.load_model(config)
    own, mask = lofit_tasks.encoded(model.tokenizer, ["w1 w2", "w9 w8 w7", "w1 w1 w3"], 8)
    texts = lofit_tasks.Texts(own, mask, jnp.array([0, 2, 0]))
    heads = np.asarray(lofit_tasks.prototypes(model, texts, 4))
    assert not heads[[1, 3]].any()
    z = np.asarray(lofit_tasks.vectors(model, texts), np.float64)
    means = np.stack([z[[0, 2]].mean(0), z[1]])
    apart = means - means.mean(0)
    wanted = apart / np.linalg.norm(apart, axis=-1, keepdims=True)
    np.testing.assert_allclose(heads[[0, 2]], wanted, atol=1e-5)
    # The loss is that of known classes, by cosines times the scale.
    logits = 20.0 * z[[0, 1]] @ wanted.T
    lost = [np.log(np.exp(row - row[at]).sum()) for at, row in enumerate(logits)]
    batch = lofit_tasks.Texts(own, mask, jnp.array([0, 2, 3]))
    found = lofit_tasks.task_loss(model.encoder, model.params, None, batch, jnp.asarray(heads))
    np.testing.assert_allclose(found, np.mean(lost), rtol=1e-4)


def test_the_first_of_the_best_tries_is_taken(monkeypatch):
    right = {0: [1, 0, 0, 0], 1: [1, 1, 0, 0], 2: [0, 0, 1, 1]}
    monkeypatch.setattr(
        lofit_arms, "hits", lambda model, texts, heads, edits: np.array(right[edits], bool)
    )
    held = {"validation": None, "test": None}
    bed = lofit_tasks.Bed(None, None)
    arm = lofit_arms.best(None, bed, held, (0.1, 0.2, 0.3), 7, lambda at: {"edits": at})
    assert arm.rate == 0.2
    assert not arm.at_edge
    assert lofit_arms.best(None, bed, held, (0.2, 0.1), 7, lambda at: {"edits": at + 1}).at_edge
    assert arm.validation == 0.5
    assert arm.numbers == 7
    np.testing.assert_array_equal(arm.right, [True, True, False, False])


LAYERS, HEADS, K = 2, 3, 2
ENCODER = lofit_tasks.Encoder(
    Bert(vocabulary=9, width=HEADS * K, depth=LAYERS, heads=HEADS, mlp=4, positions=4), "mean", 1.0
)
WEIGHT = 1.5
"""What stands in the place of the encoder's parameters, see `squares`."""


@pytest.fixture
def squares(monkeypatch):
    """A loss of edits alone, WEIGHT Σ p (edit - target)², in the place of that of a model.

    Targets are the tokens of a step's texts, p are the prototypes.
    """

    def task_loss(encoder, params, edits, texts, prototypes):
        assert encoder is ENCODER
        edit = edits.scale if edits.offset is None else edits.offset
        return params * jnp.sum(prototypes * (edit - texts.tokens) ** 2)

    monkeypatch.setattr(lofit_arms, "task_loss", task_loss)
    yield
    for program in (lofit_arms.scaled_heads, lofit_arms.slopes, lofit_arms.offsets):
        program.clear_cache()  # which has this loss


def bed_of_squares(targets, factors):
    steps = jnp.zeros(targets.shape[:-3])
    return lofit_tasks.Bed(
        lofit_tasks.Texts(jnp.asarray(targets, jnp.float32), steps, steps),
        jnp.asarray(factors, jnp.float32),
    )


def descended(start, targets, rate, gradient):
    """Adam's result on gradients of at most norm 1, its rate falling to 0 along a line."""
    x, first, second = np.array(start, np.float64), 0.0, 0.0
    norms = []
    for step, target in enumerate(targets):
        slope = gradient(x, target)
        norms.append(np.linalg.norm(slope))
        slope = slope / max(1.0, norms[-1])
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        unit = first / (1 - 0.9 ** (step + 1))
        unit /= np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        x = x - rate * (1 - step / len(targets)) * unit
    assert max(norms) > 1
    return x


def test_scales_of_heads_follow_the_loss_and_their_penalty(squares):
    rng = np.random.default_rng(0)
    shape = (LAYERS, HEADS, K)
    targets, factors = rng.normal(1, 0.5, (2, 5, *shape)), rng.uniform(0.1, 0.4, (2, *shape))
    first = rng.normal(1, 0.3, shape)
    found = lofit_arms.scaled_heads(
        ENCODER, WEIGHT, bed_of_squares(targets, factors), jnp.asarray(first, jnp.float32), 0.07,
        0.2,
    )  # fmt: skip
    for own, aims, p in zip(found, targets, factors, strict=True):

        def gradient(x, target, p=p):
            return 2 * WEIGHT * p * (x - target) + 0.2 * np.sign(x - 1)

        np.testing.assert_allclose(own, descended(first, aims, 0.07, gradient) - 1, atol=1e-5)


def test_slopes_are_the_mean_gradient_of_untouched_heads(squares):
    rng = np.random.default_rng(1)
    shape = (LAYERS, HEADS, K)
    targets, factors = rng.normal(1, 0.5, (4, *shape)), rng.uniform(0.2, 2, shape)
    found = lofit_arms.slopes(ENCODER, WEIGHT, bed_of_squares(targets, factors))
    np.testing.assert_allclose(found, 2 * WEIGHT * factors * (1 - targets.mean(0)), rtol=1e-4)


def test_offsets_of_chosen_heads_alone_are_trained_at_every_rate(squares):
    rng = np.random.default_rng(2)
    shape = (LAYERS, HEADS, K)
    targets, factors = rng.normal(0, 0.7, (5, *shape)), rng.uniform(0.1, 0.4, shape)
    first, heads = rng.normal(0, 0.3, shape), np.array([[1, 0, 1], [0, 1, 0]], bool)
    rates = (0.05, 0.2)
    found = lofit_arms.offsets(
        ENCODER, WEIGHT, bed_of_squares(targets, factors), jnp.asarray(first, jnp.float32),
        jnp.asarray(heads), jnp.asarray(rates),
    )  # fmt: skip

    def gradient(x, target):
        return np.where(heads[..., None], 2 * WEIGHT * factors * (x - target), 0)

    for own, rate in zip(found, rates, strict=True):
        assert not own[~heads].any()
        whole = descended(first, targets, rate, gradient)
        np.testing.assert_allclose(own[heads], whole[heads], atol=1e-5)


@pytest.mark.slow
def test_probes_are_fitted_on_the_first_half_and_ways_are_of_all_texts(monkeypatch):
    rng = np.random.default_rng(3)
    right = np.tile([True, False, False, True], 3)
    outputs = rng.normal(size=(LAYERS, HEADS, 12, K))
    found, seen = np.arange(24).reshape(3, 4, 2), np.ones((3, 4, 2), bool)
    label = np.arange(12).reshape(3, 4)
    bed = lofit_tasks.Bed(lofit_tasks.Texts(*map(jnp.asarray, (found, seen, label))), "prototypes")
    model = lofit_tasks.Model(ENCODER, "params", None)

    def hits(model, texts, prototypes):
        np.testing.assert_array_equal(texts.label, np.arange(12))
        assert prototypes == "prototypes"
        return right

    def head_outputs(module, variables, tokens, mask, *, pooling):
        assert (module, variables, pooling) == (ENCODER.module, {"params": "params"}, "mean")
        np.testing.assert_array_equal(tokens, np.arange(24).reshape(12, 2))
        assert mask.shape == (12, 2)
        return jnp.asarray(outputs, jnp.float32)

    monkeypatch.setattr(lofit_arms, "hits", hits)
    monkeypatch.setattr(lofit_arms, "head_outputs", head_outputs)
    monkeypatch.setattr(lofit_arms, "probe_scores", lambda *given: given)
    fitted, way = lofit_arms.probed(model, bed, 12)
    halves = (outputs[:, :, :6], right[:6], outputs[:, :, 6:], right[6:])
    for own, wanted in zip(fitted, halves, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-6)
    apart = outputs[:, :, right].mean(2) - outputs[:, :, ~right].mean(2)
    unit = apart / np.linalg.norm(apart, axis=-1, keepdims=True)
    np.testing.assert_allclose(way.unit, unit, rtol=1e-4, atol=1e-5)
    along = np.einsum("lhnk,lhk->lhn", outputs, unit)
    np.testing.assert_allclose(way.deviation, along.std(-1), rtol=1e-4)


def test_no_text_that_fits_probes_scores_them(monkeypatch):
    """Training goes over six texts twice, each time in another order."""
    rows = jnp.array([[4, 0, 2], [5, 1, 3], [3, 4, 1], [0, 5, 2]])
    texts = lofit_tasks.Texts(rows[..., None], jnp.ones((4, 3, 1), bool), rows)
    model = lofit_tasks.Model(ENCODER, "params", None)

    def head_outputs(module, variables, tokens, mask, *, pooling):
        return jnp.broadcast_to(tokens, (LAYERS, HEADS, *tokens.shape))

    monkeypatch.setattr(lofit_arms, "hits", lambda model, texts, heads: texts.label % 2 == 0)
    monkeypatch.setattr(lofit_arms, "head_outputs", head_outputs)
    monkeypatch.setattr(lofit_arms, "probe_scores", lambda *given: given)
    monkeypatch.setattr(lofit_arms, "mean_differences", lambda *given: given)
    probes, way = lofit_arms.probed(model, lofit_tasks.Bed(texts, None), 6)
    fitted, right, scored, others = (np.asarray(own) for own in probes)
    assert sorted(fitted[0, 0, :, 0]) == [0, 2, 4]
    assert sorted(scored[0, 0, :, 0]) == [1, 3, 5]
    assert right.all()
    assert not others.any()
    assert sorted(np.asarray(way[0])[-1, -1, :, 0]) == list(range(6))


def test_heads_are_shifted_by_deviations_along_their_way(monkeypatch):
    config = config_file.get_config()
    config.rates.iti = (0.1, 0.5, 2.5)
    rng = np.random.default_rng(4)
    heads = np.array([[1, 0, 1], [0, 1, 0]], bool)
    unit, deviation = rng.normal(size=(LAYERS, HEADS, K)), rng.uniform(0.5, 2, (LAYERS, HEADS))
    way = Directions(jnp.asarray(unit), jnp.asarray(deviation))
    held = {"validation": "validation", "test": "test"}

    def hits(model, texts, prototypes, edits):
        """The middle strength is best on validation texts, the last one on test texts."""
        size = float(edits.offset[0, 0, 0] / (deviation[0, 0] * unit[0, 0, 0]))
        near = abs(size - (0.5 if texts == "validation" else 2.5)) < 1e-3
        return np.arange(4) < (3 if near else 1)

    monkeypatch.setattr(lofit_arms, "hits", hits)
    bed = lofit_tasks.Bed(None, None)
    arm = lofit_arms.shifted(config, None, bed, held, jnp.asarray(heads), way)
    assert (arm.rate, arm.validation, arm.numbers) == (0.5, 0.75, 3 * K)
    assert arm.right.sum() == 1
    wanted = np.where(heads[..., None], 0.5 * deviation[..., None] * unit, 0)
    np.testing.assert_allclose(arm.edits.offset, wanted, rtol=1e-5)
    assert arm.edits.scale is None


def test_red_scales_and_moves_what_mlps_give():
    rng = np.random.default_rng(0)
    kernel, bias, scale, offset = (rng.standard_normal(s) for s in ((2, 5, 3), *[(2, 3)] * 3))
    params = {"norm": 1, "blocks": {"mlp_out": {"kernel": kernel, "bias": bias}, "other": 2}}
    first = lofit_arms.trainable(None, params, "red")
    same = lofit_arms.adapted("red", params, first)["blocks"]["mlp_out"]
    np.testing.assert_allclose(same["kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(same["bias"], bias, rtol=1e-6)
    found = lofit_arms.adapted("red", params, {"scale": scale, "offset": offset})
    assert (found["norm"], found["blocks"]["other"]) == (1, 2)
    last, x = found["blocks"]["mlp_out"], rng.standard_normal(5)
    for layer in range(2):
        wanted = scale[layer] * (x @ kernel[layer] + bias[layer]) + offset[layer]
        own = x @ last["kernel"][layer] + last["bias"][layer]
        np.testing.assert_allclose(own, wanted, rtol=1e-10)


def test_differences_have_their_signs_and_random_draws_are_averaged():
    rows = {
        "lofit_0.1": (1, 1, 1, 0), "lofit_1": (1, 1, 1, 1), "random_0": (1, 0, 0, 0),
        "random_1": (1, 1, 0, 0), "random_2": (0, 1, 0, 0), "other_a": (1, 1, 0, 0),
        "other_b": (1, 1, 1, 1), "gradient": (1, 1, 1, 1), "bias_norm": (0, 0, 0, 0),
        "probes": (1, 0, 0, 0), "iti": (0, 0, 1, 0), "lora_8": (1, 1, 1, 1), "biases": (1, 1, 0, 1),
        "red": (0, 1, 0, 0),
    }  # fmt: skip
    arms = {
        name: Arm(np.array(row, bool), 0.5, 0.1, 10 * (1 + at))
        for at, (name, row) in enumerate(rows.items())
    }
    arms["iti"] = arms["iti"]._replace(at_edge=True)
    found = lofit_measures.compared(arms, np.array([1, 0, 0, 0], bool), ["other_a", "other_b"])
    assert (found["rate_at_edge_iti"], found["rate_at_edge_lora_8"]) == (1, 0)
    wanted = {
        "accuracy_random": 1 / 3, "accuracy_other": 0.75, "gain_over_random": 0.75 - 1 / 3,
        "gain_over_random_draw": 0.25 - 0.375, "gain_over_other": 0.0,
        "gain_over_other_random": -0.5, "gain_over_gradient": -0.25,
        "gain_over_gradient_random": -0.75, "deficit_to_lora": 0.25,
        "deficit_to_lora_frozen": 0.75, "deficit_to_red": -0.5,
        "gain_over_iti": 0.5, "gain_over_iti_frozen": 0.0,
        "gain_of_all": 0.25, "gain_of_all_frozen": 0.75, "numbers_ratio": 12.0,
        "numbers_ratio_biases": 12 / 13, "numbers_ratio_least": 12.0,
        "numbers_ratio_least_all": 6.0, "gain_over_bias_norm": 0.75, "gain_over_probes": 0.5,
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value), name
    assert found["gain_over_iti_low"] < 0.5 < found["gain_over_iti_high"]


def test_overlaps_are_counted_within_and_between_tasks():
    def heads(*chosen):
        return np.isin(np.arange(12), chosen).reshape(3, 4)

    a, b = [heads(0, 1, 2), heads(0, 1, 3)], [heads(0, 8, 9), heads(7, 8, 9)]
    found = lofit_measures.agreement({"a": a, "b": b}, [heads(4, 5, 6), heads(9, 10, 11)])
    assert found["jaccard_within"] == pytest.approx(2 / 4)
    assert found["jaccard_between"] == pytest.approx((1 / 5 + 0 + 1 / 5 + 0) / 4)
    assert found["own_heads"] == pytest.approx(0.4)
    assert found["own_heads_exchanged"] == pytest.approx(0.1 - 0.1)
    # Two pairs that share two of three each: four in all, or more.
    law = stats.hypergeom(12, 3, 3)
    ways = [law.pmf(i) * law.pmf(j) for i in range(4) for j in range(4) if i + j >= 4]
    assert found["overlap_p"] == pytest.approx(sum(ways))
    assert found["overlap_p_random"] == pytest.approx(1.0)


def test_what_is_counted_has_an_interval_of_no_width():
    found = lofit_measures.exact("state_share", 0.25)
    assert found == {"state_share": 0.25, "state_share_low": 0.25, "state_share_high": 0.25}


def test_steps_are_timed_in_pairs_whose_order_alternates(monkeypatch):
    order = []

    def median_ratio(first, second, repeats):
        assert repeats == 1
        order.append((first, second))
        return 2.0 if first == "edits" else 0.25

    monkeypatch.setattr(lofit_measures, "median_ratio", median_ratio)
    found = lofit_measures.paired_seconds("edits", "lora", repeats=3)
    assert order == [("edits", "lora"), ("lora", "edits"), ("edits", "lora")]
    np.testing.assert_array_equal(found, [2.0, 4.0, 2.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (0.1, 0.2, 1.0)}, r"shares is \(0.1, 0.2, 1.0\), expected to ascend"),
        ({"shares": (0.03, 0.1, 0.5)}, "the last 1"),
        ({"rates": {"full": (1e-4,)}}, "expected equally many tries"),
        ({"data": {"name": "debian"}}, "data.others is .*, expected tasks beside data.name"),
        ({"sizes": (64, 600)}, r"sizes is \(64, 600\), expected to ascend from 1 to 512"),
        ({"head": {"names": "rows"}}, "head.names 'rows'"),
        ({"sample": {"anchors": 0}}, "sample.anchors is 0, expected texts of class means"),
        ({"head": {"names": "words"}}, "sample.anchors is 512, expected 0, since words name"),
        ({"sample": {"draws": 1}}, "sample.draws is 1 and draws 3, expected at least 2"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        lofit.check(config)


@pytest.mark.parametrize("prompt", ["Definition:", "{} and {}"])
def test_a_prompt_without_one_place_for_the_text_is_named(prompt):
    config = lofit_smollm2.get_config()
    config.data.prompts.questions = prompt
    with pytest.raises(UserError, match=r"data.prompts.questions is '.*', expected words with one"):
        lofit.check(config)


@pytest.mark.slow
def test_edits_of_no_head_change_no_vector(tiny):
    model = lofit_tasks.load_model(config_file.get_config())
    own, mask = lofit_tasks.encoded(model.tokenizer, ["w1", "w2 w3"], 8)
    texts = lofit_tasks.Texts(own, mask, jnp.zeros(2, int))
    zeros = HeadEdits(offset=jnp.zeros((2, 16, 2)))
    plain, edited = (lofit_tasks.vectors(model, texts, edits=e) for e in (None, zeros))
    np.testing.assert_allclose(plain, edited, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=-1), 1, rtol=1e-5)
