"""The recipe on S2-attention with tiny models; `make claims` measures models that learn."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import s2_attention as config_file
from experiments.attention import late, s2_attention, s2_needles, s2_patterns
from experiments.common import small_lm
from rml import models
from rml.attention import shard_pattern
from rml.data.tokens import train_tokenizer
from rml.errors import UserError
from rml.models.attention import attend
from tests.claims.drawn_models import drawn
from tests.system.two_steps import override

SMALL = {
    "text.length": 32, "text.vocabulary": 300, "text.windows": 4, "model.width": 16,
    "model.heads": 2, "model.kv_heads": 2, "model.mlp": 16, "pattern.block": 4,
    "pattern.strides": (2,), "pattern.sinks": 1, "late.length": 32, "late.documents": 2,
    "late.heads": 2, "late.block": 4, "late.seen": 12, "late.tries.s2": (2,),
    "late.tries.homogeneous": (2,), "late.tries.window": (2,), "costs.length": 128,
    "costs.heads": 2, "costs.kv_heads": 2, "costs.width": 8, "costs.block": 8, "costs.local": 2,
    "costs.stride": 2, "needles.length": 32, "needles.answers": 3, "needles.repeats": 1,
    "needles.tested": 64,
    "needles.width": 8, "needles.mlp": 8, "needles.train.steps": 2, "needles.train.batch_size": 4,
    "needles.optimizer.warmup_steps": 1,
}  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """Random models in the place of trained ones, and words in that of texts."""
    module = models.Llama(vocabulary=32, width=16, depth=2, heads=2, mlp=16, tied=True)
    loaded = SimpleNamespace(module=module, variables=drawn(module), tokenizer=None)
    monkeypatch.setattr(late.pretrained, "load", lambda name: loaded)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (3, 32)).astype(np.int32)
    monkeypatch.setattr(late.data, "long_documents", lambda *_, length: tokens[:, :length])
    texts = [" ".join(f"word{n}" for n in row) for row in rng.integers(0, 30, (6, 100))]
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)

    def untrained(config, run, text, attentions):
        del run, text
        made = drawn(small_lm.language_model(config, attend))["params"]
        return {name: [made] for name in attentions}

    monkeypatch.setattr(small_lm, "trained", untrained)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(trained, measure, tmp_path):
    metrics, holds = measure("configs/attention/s2_attention.py", SMALL)
    assert len(holds) == len(s2_attention.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["coverage"] == 1.0 > metrics["coverage_homogeneous"]
    assert metrics["decoding_error"] < 1e-5
    assert metrics["decoding_error_of_other_shards"] > 1e-4
    # All have the same weights here, and near tokens are seen alike.
    assert abs(metrics["gain_over_homogeneous_near"]) < 1e-5
    assert metrics["cache_share_union"] >= 1.0 > metrics["cache_share"]
    assert metrics["excess_share"] == pytest.approx(
        (metrics["nats_s2_2"] - metrics["nats_dense"]) / metrics["nats_dense"], abs=1e-6
    )
    assert metrics["perplexity_ratio"] == pytest.approx(
        np.exp(metrics["nats_s2_2"] - metrics["nats_dense"]), rel=1e-5
    )
    assert metrics["perplexity_ratio_low"] <= metrics["perplexity_ratio"]
    assert metrics["needle_share_s2"] == pytest.approx(
        metrics["needles_s2"] / metrics["needles_dense"]
    )
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(s2_attention.CAPTIONS)


@pytest.mark.slow
def test_what_is_compared_sees_equally_many_keys():
    config = config_file.get_config()
    found = s2_patterns.variants(config)
    stride, block = config.pattern.strides[-1], config.pattern.block
    pattern = s2_patterns.pattern_of(config, stride, shards=config.model.kv_heads)
    whole = np.tril(np.kron(pattern, np.ones((block, block), bool)))
    assert found[f"s2_{stride}"].keys == pytest.approx(whole.sum(axis=2).mean(), rel=1e-6)
    for name in ("window", "homogeneous"):
        keys = found[f"{name}_{stride}"].keys
        assert keys == pytest.approx(found[f"s2_{stride}"].keys, rel=0.03)
    window = found[f"window_{stride}"].attention.keywords
    seen = np.minimum(np.arange(1, 257), window["width"] + window["sinks"])
    assert seen.mean() == pytest.approx(whole.sum(axis=2).mean(), rel=0.02)
    sinkless = found[f"sinkless_{stride}"].attention.keywords
    assert sinkless["sinks"] == 0
    assert np.minimum(np.arange(1, 257), sinkless["width"]).mean() == pytest.approx(
        whole.sum(axis=2).mean(), rel=0.02
    )
    # One of four heads sees the whole triangle.
    keys = found[f"headed_{stride}"].keys
    assert keys == pytest.approx((whole[:-1].sum(axis=2).mean(axis=1).sum() + 257 / 2) / 4)
    assert found[f"hybrid_{stride}"].cache == (1 + found[f"s2_{stride}"].cache) / 2
    for name, choice in (("s2", 6), ("homogeneous", 9)):
        own = s2_patterns.late_options(config, name, choice)
        late_pattern = shard_pattern(
            64, heads=9, shards=own["shards"], local=own["local"], stride=choice,
            offset=own["offset"],
        )  # fmt: skip
        # Not all heads keep the first tokens, which serve as sinks: of nine two with a stride of 6.
        assert late_pattern[:, -1, 0].sum() == (2 if name == "s2" else 0)
        keys = s2_patterns.mean_keys(late_pattern, own["block"])
        assert keys == pytest.approx(config.late.seen, rel=0.05)


@pytest.mark.slow
def test_needles_are_looked_for_at_equal_keys_of_their_own_length(monkeypatch):
    seen = {}

    def searched(config, run, text, attentions):
        seen.update(attentions)
        return None, None

    monkeypatch.setattr(s2_needles, "searched", searched)
    monkeypatch.setattr(s2_needles, "compared", lambda *_, near, width: {"width": width})
    config = config_file.get_config()
    found = s2_attention.needles(config, None, None)
    window = seen["window"].keywords
    assert found["width"] == window["width"]
    places = jnp.arange(128)
    mask = np.asarray(seen["s2"].keywords["bias"](places, places)) == 0
    keys = (mask & np.tri(128, dtype=bool)).sum(axis=2).mean()
    near = np.minimum(np.arange(1, 129), window["width"] + window["sinks"]).mean()
    assert near == pytest.approx(keys, rel=0.02)


def needle_config():
    config = config_file.get_config()
    config.update(
        {"text": {"vocabulary": 20}, "needles": {"length": 12, "answers": 3, "repeats": 2}}
    )
    return config


def test_a_prompt_hides_an_answer_behind_a_mark_and_ends_in_the_mark():
    text = small_lm.Text(None, {"test": np.arange(60, dtype=np.int32) % 20})
    asked = s2_needles.prompts(needle_config(), text, "test", 40)
    windows = [row.tolist() for row in text.windows("test", 12)]
    assert len(set(asked.answer)) == 3
    assert (asked.distance.min(), asked.distance.max()) == (1, 9)
    for tokens, answer, distance in zip(*asked, strict=True):
        last = 11 - distance
        assert tokens[-1] == 23
        assert tokens[last - 2 : last + 1].tolist() == [23, 20 + answer, 20 + answer]
        rest = np.delete(tokens, [11, last, last - 1, last - 2]).tolist()
        assert any(rest == window[:8] for window in windows)


class Counting:
    """A model whose logits count the tokens that were read."""

    vocabulary = 24

    def apply(self, variables, x, method=None):
        return x if method else jax.nn.one_hot(x, 24).cumsum(axis=1) * variables["params"]


def test_an_answer_is_found_if_it_scores_above_the_others():
    text = small_lm.Text(None, {"test": np.arange(60, dtype=np.int32) % 20})
    asked = s2_needles.prompts(needle_config(), text, "test", 40)
    assert s2_needles.found(Counting(), 1.0, asked, 3).all()
    assert not s2_needles.found(Counting(), -1.0, asked, 3).any()
    assert not s2_needles.found(Counting(), 0.0, asked, 3).any()  # a tie is not found


def test_needles_beyond_the_window_are_compared():
    asked = s2_needles.Prompts(np.zeros((6, 2)), np.zeros(6), np.array([1, 2, 5, 6, 7, 8]))
    rows = {
        "dense": [1, 1, 0, 1, 1, 1], "s2": [1, 0, 1, 1, 0, 1],
        "homogeneous": [1, 1, 1, 0, 0, 1], "window": [1, 1, 1, 0, 0, 0],
    }  # fmt: skip
    by = {name: np.array(row, bool) for name, row in rows.items()}
    found = s2_needles.compared(asked, by, near=3, width=6)
    assert found["needles_dense"] == 1.0
    assert found["needle_share_s2"] == pytest.approx(2 / 3)
    assert found["needle_share_homogeneous"] == pytest.approx(1 / 3)
    assert found["needles_over_window"] == pytest.approx(2 / 3)
    assert found["needles_over_window_near"] == pytest.approx(-1 / 2)
    assert found["needles_homogeneous_over_window"] == pytest.approx(1 / 3)
    low, high = (found[f"needles_homogeneous_over_window_{end}"] for end in ("low", "high"))
    assert low < 1 / 3 < high
    assert "needles_over_window" not in {claim.metric for claim in s2_attention.CLAIMS}
    with pytest.raises(UserError, match="1 of 6 needles lie beyond the window, expected at least"):
        s2_needles.compared(asked, by, near=3, width=8)


def test_texts_are_cut_into_windows():
    texts = ["one two three", "four five"]
    tokenizer = train_tokenizer(texts, vocabulary=300)
    joined = small_lm.stream(tokenizer, texts)
    assert list(np.flatnonzero(joined == small_lm.SEPARATOR)) == [
        len(tokenizer.encode(texts[0], add_special_tokens=False).ids), len(joined) - 1,
    ]  # fmt: skip
    text = small_lm.Text(tokenizer, {"test": np.arange(23, dtype=np.int32)})
    np.testing.assert_array_equal(text.windows("test", 4, 3)[:, 0], [0, 8, 16])
    np.testing.assert_array_equal(text.windows("test", 4)[-1], [16, 17, 18, 19])
    with pytest.raises(UserError, match="the test text has 23 tokens, expected at least a window"):
        text.windows("test", 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"late.heads": 8, "late.tries.s2": (2,)}, "late.heads is 8, expected 2 as smollm2 has"),
        ({"late.documents": 4}, "late.documents is 4, expected at most 3: the test texts of"),
    ],
)
def test_what_late_layers_need_is_opened_before_any_training(
    trained, monkeypatch, changes, message
):
    monkeypatch.delattr(small_lm, "trained")  # nothing calls it
    config = override(config_file.get_config(), SMALL | changes)
    with pytest.raises(UserError, match=message):
        s2_attention.run(config, None)


@pytest.mark.slow
def test_what_is_told_of_time_is_timed(monkeypatch):
    """Dense attention takes 8 seconds, S2 6, and the same code with all blocks 10."""
    calls = []

    def seconds(call, *, repeats):
        calls.append(call())
        return {1: 8.0, 2: 6.0, 3: 10.0}[len(calls)]

    monkeypatch.setattr(s2_patterns, "least_seconds", seconds)
    found = s2_patterns.costs(override(config_file.get_config(), SMALL))
    assert found["time_share"] == 6 / 8
    assert found["time_over_operations"] == 6 / 8 / found["operations_share"]
    assert found["time_over_operations_all_blocks"] == 10 / 8 / found["operations_share"]
    np.testing.assert_allclose(calls[2], calls[0], atol=1e-5)
    assert np.abs(calls[1] - calls[0]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"length": 255}}, "text.length is 255, expected a multiple of pattern.block=8"),
        ({"pattern": {"strides": (8,)}}, "no head of 4 lets block"),
        ({"pattern": {"dense_every": 3}}, "dense_every is 3, expected 2 to model.depth=2"),
        ({"late": {"tries": {"window": (4,)}}}, "expected equally many"),
        (
            {"needles": {"length": 100}},
            "needles.length is 100, expected a multiple of pattern.block",
        ),
        ({"needles": {"length": 264}}, "needles.length is 264, expected at most text.length=256"),
        ({"needles": {"answers": 1}}, "needles.answers is 1, expected at least 2"),
        ({"costs": {"kv_heads": 3}}, "costs.kv_heads is 3, expected a divisor of costs.heads=8"),
        ({"costs": {"stride": 16}}, "costs.stride is 16: no head of 8 lets block"),
        (
            {"late": {"tries": {"s2": (3, 6, 12)}}},
            "late.tries.s2 has 12 with late.heads=9: no head of 9 lets block",
        ),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        s2_attention.check(config)
