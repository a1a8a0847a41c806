"""The recipe of logits fusion on tiny models; `make claims` measures ones that can read."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.merging import logits_fusion as config_file
from experiments.common import figures, small_lm
from experiments.merging import (
    logits_costs,
    logits_figures,
    logits_fusion,
    logits_measures,
    logits_readings,
    logits_writing,
)
from experiments.merging.logits_models import Models, data
from experiments.merging.logits_readings import Reading
from rml.data import tokens
from rml.errors import UserError
from rml.models import generate
from rml.ops import trees

SMALL = {
    "seed": 1, "text.length": 12, "text.vocabulary": 300, "text.windows": 3,
    "data.domains": ("even", "odd"), "large.width": 16, "large.depth": 1, "large.heads": 2,
    "large.mlp": 16, "small.width": 8, "small.depth": 1, "small.heads": 2, "small.mlp": 8,
    "train.batch_size": 4, "train.steps": 4, "optimizer.learning_rate": 0.1,
    "train.log_every": 1, "train.eval_every": 4, "train.checkpoint_every": 4,
    "optimizer.warmup_steps": 1, "tuning.steps": 3,
    "tuning.warmup_steps": 1, "tuning.rates": (0.1,), "tuning.rank": 2, "alpha.points": 21,
    "alpha.scales": (0.5,), "timing.repeats": 3,
    # Texts are timed by the programs that they are written by.
    "timing.texts": 3, "timing.prompt": 5, "timing.steps": 6, "writing.prompt": 5,
    "writing.steps": 6,
}  # fmt: skip


@pytest.fixture
def collections(monkeypatch):
    def documents(name, split, **_):
        start = {"even": 0, "odd": 20}.get(name, 40)
        words = np.random.default_rng(len(split)).integers(start, start + 20, (4, 60))
        return [" ".join(f"word{n}" for n in row) for row in words]

    monkeypatch.setattr(data, "load_documents", documents)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(collections, measure, tmp_path):
    metrics, holds = measure("configs/merging/logits_fusion.py", SMALL)
    assert len(holds) == len(logits_fusion.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert {claim.null for claim in logits_fusion.CLAIMS} <= set(metrics)
    # What was tuned fits its collection better than what it began from.
    assert metrics["nats_tuned"] < metrics["nats_large"] - 0.05
    assert metrics["nats_lora"] < metrics["nats_large"] - 0.001
    assert metrics["nats_dynamic"] != metrics["nats_proxy"] != metrics["nats_large"]
    assert metrics["nats_fixed_oracle"] <= metrics["nats_fixed"]
    assert 0 < metrics["training_share"] < metrics["training_share_lora"] < 1
    assert metrics["alpha_sd_same"] < 1e-5 < metrics["alpha_sd"]
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert set(logits_fusion.CAPTIONS) <= figures


def test_the_null_of_the_cost_tries_ten_times_as_many_weights():
    points = np.linspace(0, 2, 5)
    tried = [logits_costs.weights_tried(points, finer) for finer in (1, logits_costs.FINER)]
    counts = [round(options["high"] / options["step"]) for options in tried]
    assert counts == [4, 40]
    assert all(options["alpha"] is None for options in tried)  # chosen at every token


@pytest.mark.slow
def test_operations_of_choosing_are_over_the_products_of_a_step():
    config = config_file.get_config()
    config.alpha.points = 5
    with config.unlocked():
        config.model = config.large

    def products(width, depth, mlp, vocabulary):
        """Of one token: four projections, a gated MLP, and itself as the only context."""
        block = 2 * 4 * width**2 + 2 * 3 * width * mlp + 2 * 2 * width
        return depth * block + 2 * width * vocabulary

    found = logits_costs.choosing_flops(config)
    for vocabulary, name in ((2048, "choosing_flops"), (32_000, "choosing_flops_32000")):
        step = products(128, 4, 384, vocabulary) + 2 * products(48, 2, 144, vocabulary)
        assert found[name] == pytest.approx(12 * 5 * vocabulary / step)


def test_tokens_are_placed_in_lines():
    words = ["a" * 50, "b" * 34, "c", "d" * 90]
    assert figures.placed_words(words, logits_figures.LINE) == [
        (0, 0), (50, 0), (0, 1), (0, 2),
    ]  # fmt: skip
    assert logits_figures.readable("\n a") == "↵ a"


def test_gains_are_over_the_weight_of_each_domain_that_validation_chose():
    config = config_file.get_config()
    config.alpha.points, config.data.domains = 5, ("a", "b")  # weights 0, 0.5, 1, 1.5, 2
    rng = np.random.default_rng(0)

    def reading():
        draws = {name: rng.normal(4, 1, (3, 7)) for name in Reading._fields}
        return Reading(**draws | {"fixed": rng.normal(4, 1, (3, 5, 7))})

    test = {"a": reading(), "b": reading()}
    validation = {name: rng.normal(4, 1, (3, 5, 7)) for name in test}
    whole = {kind: {"a": rng.normal(3, 1, (3, 7)), "b": rng.normal(3, 1, (3, 7))}
             for kind in ("tuned", "lora")}  # fmt: skip
    metrics = logits_measures.of_one(config, validation, test, whole)
    best = {name: own.mean((0, 2)).argmin() for name, own in validation.items()}
    fixed = np.concatenate([test[name].fixed[:, best[name]].mean(1) for name in test])
    dynamic = np.concatenate([own.dynamic.mean(1) for own in test.values()])
    proxy = np.concatenate([own.fixed[:, 2].mean(1) for own in test.values()])
    assert metrics["gain_over_fixed"] == pytest.approx((fixed - dynamic).mean())
    assert metrics["gain_over_proxy"] == pytest.approx((proxy - dynamic).mean())
    assert metrics["fixed_alpha_b"] == best["b"] / 2
    large = np.mean([own.large for own in test.values()])
    tuned = np.mean(list(whole["tuned"].values()))
    assert metrics["ratio_to_tuned"] == pytest.approx(tuned / dynamic.mean())
    assert metrics["gap_closed"] == pytest.approx((large - dynamic.mean()) / (large - tuned))


@pytest.mark.slow
def test_continuations_begin_after_the_prompt_and_are_held_against_the_window():
    config = config_file.get_config()
    config.update_from_flattened_dict(
        {
            "data.domains": ("a", "b"), "large.width": 16, "large.depth": 1, "large.heads": 2,
            "large.mlp": 16, "small.width": 8, "small.depth": 1, "small.heads": 2, "small.mlp": 8,
            "alpha.points": 5, "text.vocabulary": 330, "writing.prompt": 3, "writing.steps": 9,
        }
    )  # fmt: skip
    words = [f" {first}{second}" for first in "abcdef" for second in "uvwxyz"]
    tokenizer = tokens.train_tokenizer(["".join(words)] * 3, vocabulary=config.text.vocabulary)
    text = small_lm.Text(tokenizer, {})
    large, small = logits_readings.modules(config)

    def params(module, seed):
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
            nn.unbox(shapes)["params"],
        )

    own = {name: params(module, at) for at, (name, module) in enumerate(
        {"large": large, "tuned": large, "lora": large, "small": small, "a": small}.items()
    )}  # fmt: skip
    # The expert of b is the small model: no weight moves the large one.
    models = Models(
        own["large"], own["small"], trees.stack_trees([own["a"], own["small"]]), None,
        {"b": own["tuned"], "a": own["tuned"]}, {"b": own["lora"], "a": own["lora"]}, {},
    )  # fmt: skip
    vocabulary = tokenizer.get_vocab_size()
    prompts = np.random.default_rng(3).integers(0, vocabulary, (6, 3))
    truth = generate(large, {"params": own["large"]}, jnp.asarray(prompts), steps=9)
    windows = np.concatenate([prompts, np.asarray(truth), prompts], axis=1)
    still = logits_writing.write(config, models, text, "b", 0.5, windows)
    whole = still.rouge["large"]
    assert whole.max() == 1
    for way in ("proxy", "fixed", "dynamic", "same_mean"):
        np.testing.assert_array_equal(still.rouge[way], whole)
        assert still.first_lines[way].all()
    moved = logits_writing.write(config, models, text, "a", 1.0, windows)
    np.testing.assert_array_equal(moved.rouge["large"], whole)
    np.testing.assert_array_equal(moved.rouge["fixed"], moved.rouge["proxy"])
    for way in ("proxy", "dynamic", "expert", "lora", "tuned"):
        assert moved.rouge[way].mean() < whole.mean() - 0.1, way
    assert moved.alpha.shape == (6, 9)
    assert moved.alpha.min() < moved.alpha.max()


def test_gains_of_writing_are_over_texts_of_all_domains():
    rng = np.random.default_rng(0)
    writings = {
        name: logits_writing.Writing(
            {way: rng.uniform(size=count) for way in logits_writing.WAYS},
            {way: np.ones(count) for way in logits_writing.WAYS}, np.zeros((count, 2)),
        )
        for name, count in (("a", 3), ("b", 5))
    }  # fmt: skip
    found = logits_writing.compared(writings)
    all_of = {
        way: np.concatenate([own.rouge[way] for own in writings.values()])
        for way in logits_writing.WAYS
    }
    for other in ("proxy", "fixed"):
        gain = (all_of["dynamic"] - all_of[other]).mean()
        assert found[f"rouge_gain_over_{other}"] == pytest.approx(gain)
        gain = (all_of["same_mean"] - all_of[other]).mean()
        assert found[f"rouge_gain_over_{other}_same_mean"] == pytest.approx(gain)
    assert found["rouge_tuned"] == pytest.approx(all_of["tuned"].mean())
    assert found["first_line_expert"] == 1


def test_contrastive_decoding_moves_the_large_model_away_from_the_small_one(monkeypatch):
    config = config_file.get_config()
    config.alpha.points, config.data.domains = 5, ("a", "b")  # β of 0, 0.5, 1, 1.5, 2
    rng = np.random.default_rng(2)
    logits = {name: rng.normal(size=(6, 9)) for name in ("large", "small")}
    monkeypatch.setattr(
        logits_readings, "_logits", lambda module, params, window: jnp.asarray(logits[params])
    )
    monkeypatch.setattr(logits_readings, "modules", lambda config: ("large", "small"))
    windows = rng.integers(0, 9, (2, 7))
    models = Models("large", "small", None, None, {}, {}, {})
    monkeypatch.setattr(logits_readings, "_read_fixed", logits_readings._read_fixed.__wrapped__)
    found = logits_readings.read_contrastive(config, models, windows)
    assert found.shape == (2, 5, 6)
    for at, beta in enumerate((0, 0.5, 1, 1.5, 2)):
        fused = (1 + beta) * logits["large"] - beta * logits["small"]
        logs = fused - np.log(np.exp(fused).sum(1, keepdims=True))
        for row, window in zip(found[:, at], windows, strict=True):
            np.testing.assert_allclose(row, -logs[np.arange(6), window[1:]], rtol=1e-5)
    # Validation chooses β of each domain; its test windows have that one.
    reads = {"a1": [1, 0, 2, 2, 2], "a2": [5, 6, 7, 8, 9], "b1": [4, 3, 2, 1, 0], "b2": [1] * 5}
    monkeypatch.setattr(
        logits_measures,
        "read_contrastive",
        lambda config, models, name: np.tile(np.asarray(reads[name])[None, :, None], (2, 1, 6)),
    )
    windows = {"validation": {"a": "a1", "b": "b1"}, "test": {"a": "a2", "b": "b2"}}
    nats, chosen = logits_measures.contrasted(config, models, windows)
    assert chosen == {"contrastive_beta_a": 0.5, "contrastive_beta_b": 2.0}
    assert nats["a"].shape == (2, 6)
    assert (nats["a"] == 6).all()


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def apart(p, q):
    """Both divergences of logits."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(-1), (np.exp(q) * (q - p)).sum(-1)


@pytest.mark.slow
def test_every_way_of_reading_is_the_logits_that_it_names(monkeypatch):
    """Windows under drawn logits, of which the second expert is the one."""
    config = config_file.get_config()
    config.alpha.points = 5  # weights 0, 0.5, 1, 1.5, 2
    rng = np.random.default_rng(4)
    large, small = rng.normal(size=(2, 6, 9))
    experts = small + rng.normal(0, [[[0.6]], [[1.2]], [[0.9]]], (3, 6, 9))
    monkeypatch.setattr(logits_readings, "_logits", lambda module, params, window: params)
    monkeypatch.setattr(logits_readings, "modules", lambda config: ("large", "small"))
    monkeypatch.setattr(logits_readings, "_read", logits_readings._read.__wrapped__)
    given = [jnp.asarray(x, jnp.float32) for x in (large, small, experts)]
    windows = rng.integers(0, 9, (2, 7))
    models = Models(*given, None, {}, {}, {})
    found = logits_readings.read(config, models, given[2], 1, windows)

    def same(own, logits):
        """Nats of both windows' tokens but the first."""
        for row, window in zip(own, windows, strict=True):
            nats = -log_softmax(logits)[np.arange(6), window[1:]]
            np.testing.assert_allclose(row, nats, rtol=1e-4, atol=1e-5)

    def chosen(moved):
        """The active expert's weight at every token, by a search."""
        shifts = [apart(small + x, small) for x in moved]
        points = [(at, a) for at in range(len(moved)) for a in np.arange(0, 2.1, 0.5)]
        losses = []
        for at, a in points:
            own = apart(large + a * moved[at], large)
            each = [(own[0] - x[0]) ** 2 + (own[1] - x[1]) ** 2 for x in shifts]
            losses.append(sum(each))
        weights = np.zeros((len(moved), 6))
        for token, best in enumerate(np.argmin(losses, axis=0)):
            weights[points[best][0], token] = points[best][1]
        return weights

    moved = experts - small
    one, several = chosen(moved[1:2])[0], chosen(moved)
    assert ((several > 0).sum(0) <= 1).all()
    assert ((several > 0).sum(1) > 0).sum() >= 2
    assert one.min() < one.max()
    for window in range(2):
        np.testing.assert_allclose(found.alpha[window], one, atol=1e-6)
        np.testing.assert_allclose(found.active[window], several, atol=1e-6)
        np.testing.assert_allclose(found.same[window], 1, atol=1e-6)
        np.testing.assert_allclose(found.moved[window], apart(experts[1], small)[0], rtol=1e-4)
    same(found.large, large)
    same(found.expert, experts[1])
    same(found.mean, (large + experts[1]) / 2)
    same(found.dynamic, large + one[:, None] * moved[1])
    same(found.fixed[:, 3], large + 1.5 * moved[1])
    same(found.several, large + np.einsum("tn,tnv->nv", several, moved))
    same(found.uniform, large + moved.mean(0))


def test_several_experts_are_held_against_one_that_has_all_of_them(monkeypatch):
    config = config_file.get_config()
    config.data.domains, config.data.unseen = ("a", "b"), "c"
    config.alpha.scales = (0.3, 0.5, 1.0)
    rng = np.random.default_rng(5)

    def reading():
        draws = {name: rng.normal(4, 1, (3, 7)) for name in Reading._fields}
        which = np.arange(2)[:, None] == rng.integers(0, 2, (3, 1, 7))
        return Reading(**draws | {"active": which * rng.choice([0.0, 0.5, 2.0], (3, 1, 7))})

    readings = {name: reading() for name in ("a", "b", "c")}
    models = Models("large", "small", "experts", "multitask", {}, {}, {})
    pairs = {}

    def read_dynamic(config, models, params, name):
        """Nats with weight 1 and with chosen ones; of 0.5 the chosen ones are best."""
        better = 2.0 if params == 0.5 else 0.0
        if (params, name) not in pairs:
            pairs[params, name] = rng.normal([[[4.0]], [[4.0 - better]]], 0.1, (2, 3, 7))
        return pairs[params, name]

    def read(config, models, experts, own, name):
        assert (experts, own, name) == ("experts", 0, "test c")
        return readings["c"]

    monkeypatch.setattr(logits_measures, "read", read)
    monkeypatch.setattr(logits_measures, "read_dynamic", read_dynamic)
    monkeypatch.setattr(logits_measures, "merged", lambda models, scale: scale)
    windows = {part: {name: f"{part} {name}" for name in readings}
               for part in ("validation", "test")}  # fmt: skip
    seen = {name: own for name, own in readings.items() if name != "c"}
    metrics, active = logits_measures.of_several(config, models, windows, seen)
    assert metrics["scale_arithmetic"] == 0.5
    base = readings["c"].large.mean()
    multitask = pairs["multitask", "test c"][0].mean()
    for ending, nats in (("", readings["c"].several.mean()), ("_multitask", multitask),
                         ("_uniform", readings["c"].uniform.mean())):  # fmt: skip
        assert metrics[f"rise_unseen{ending}"] == pytest.approx(nats / base - 1)
    for at, ending in enumerate(("", "_dynamic")):
        for kind, params in (("multitask", "multitask"), ("arithmetic", 0.5)):
            own = {name: pairs[params, f"test {name}"][at].mean() for name in readings}
            mean = (own["a"] + own["b"]) / 2
            assert metrics[f"nats_{kind}{ending}_seen"] == pytest.approx(mean)
            assert metrics[f"nats_{kind}{ending}_unseen"] == pytest.approx(own["c"])
    mean = (readings["a"].several.mean() + readings["b"].several.mean()) / 2
    assert metrics["nats_several_seen"] == pytest.approx(mean)
    for name, own in readings.items():
        counts = (own.active > 0).sum((0, 2))
        np.testing.assert_allclose(active[name], counts / counts.sum())


def test_windows_are_cut_before_any_training(monkeypatch):
    config = config_file.get_config()
    names = (config.data.general, *config.data.domains, config.data.unseen)
    streams = {part: np.zeros(500, np.int32) for part in small_lm.PARTS}
    texts = {name: small_lm.Text(None, streams) for name in names}
    texts[config.data.unseen] = small_lm.Text(None, streams | {"test": np.zeros(9, np.int32)})
    monkeypatch.setattr(logits_fusion, "read_texts", lambda config: texts)
    monkeypatch.delattr(logits_fusion, "make_models")  # nothing calls it
    with pytest.raises(UserError, match="the test text has 9 tokens, expected at least a window"):
        logits_fusion.run(config, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.domains": ("sotu",)}, "expected two collections or more"),
        ({"tuning.rates": ()}, r"tuning\.rates is empty"),
        ({"alpha.scales": ()}, r"alpha\.scales is empty"),
        ({"alpha.points": 4}, "give weights without 1"),
        ({"timing.prompt": 100}, "timing.steps=32 are more than the 128 tokens of text.length"),
        ({"writing.steps": 80}, "writing.prompt=64 and writing.steps=80 are more than the 128"),
    ],
)
def test_wrong_options_are_named(change, message):
    config = config_file.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        logits_fusion.check(config)
