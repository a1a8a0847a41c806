"""E²-LLM's recipe on a tiny model; `make claims` measures one that has learned to read."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from configs.attention import length_extension as config_file
from experiments.attention import length_extension, length_methods, length_readings
from experiments.common import small_lm
from rml.errors import UserError
from rml.models import rope
from rml.models.attention import attend

SMALL = {
    "seed": 1, "text.length": 16, "text.vocabulary": 300, "text.windows": 4, "model.width": 16,
    "model.depth": 1, "model.heads": 2, "model.mlp": 16, "train.batch_size": 8, "train.steps": 2,
    "train.log_every": 1, "train.eval_every": 2, "train.checkpoint_every": 2,
    "optimizer.warmup_steps": 1, "extension.steps": 2, "extension.warmup_steps": 1,
    "extension.learning_rate": 0.3, "extension.largest": 1, "extension.long": 2,
    "extension.fewer": 2,
    "long.scales": (1,), "long.validation": 1, "long.test": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def speeches(monkeypatch):
    words = np.random.default_rng(0).integers(0, 30, (6, 400))
    texts = [" ".join(f"word{n}" for n in row) for row in words]
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(measure, tmp_path):
    metrics, holds = measure("configs/attention/length_extension.py", SMALL)
    assert len(holds) == len(length_extension.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    nats = {name: metrics[f"nats_{name}_16x"] for name in length_methods.TRAINED}
    assert nats.pop("e2_fewer") not in nats.values()
    # With a largest scale of 1 no window has room for an offset of more than its last token.
    assert nats["no_offset"] == nats["plain"]
    assert len(set(nats.values()) | {metrics["nats_extrapolated_16x"]}) == 6
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(length_extension.CAPTIONS)
    lines = (tmp_path / "run/methods/interpolated_long/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "train/loss" in line] == [1, 2]
    # Steps and tokens of a batch: as many of long windows, half of the steps for fewer tokens.
    assert metrics["tokens_e2"] == metrics["tokens_interpolated_long"] == 2 * 8 * 16
    assert metrics["tokens_e2_fewer"] == 1 * 8 * 16
    assert metrics["tokens_share"] == 0.5
    # The least that a step holds: parameters, two moments of each, the logits of four windows.
    tied, block = 300 * 16 + 16, 2 * 16 + 4 * 16 * 16 + 3 * 16 * 16
    assert metrics["memory_e2"] > 4 * (3 * (tied + block) + 4 * 16 * 300) / 1e6
    assert 0.5 < metrics["memory_share"] < 1
    assert metrics["memory_share"] == metrics["memory_e2"] / metrics["memory_interpolated_long"]


def test_an_extension_has_its_tokens_and_rate(config):
    config.extension.update(dict(steps=12, warmup_steps=4, learning_rate=0.25, long=4, fewer=3))
    config.train.batch_size = 8
    own = {name: length_methods.config_of(config, name) for name in length_methods.TRAINED}
    sizes = {n: (c.train.steps, c.train.batch_size, c.text.length) for n, c in own.items()}
    assert sizes.pop("interpolated_long") == (12, 2, 16)
    assert sizes.pop("e2_fewer") == (4, 8, 4)
    assert set(sizes.values()) == {(12, 8, 4)}
    assert {c.optimizer.learning_rate for c in own.values()} == {0.25}
    warmups = {name: c.optimizer.warmup_steps for name, c in own.items()}
    assert warmups.pop("e2_fewer") == 1
    assert set(warmups.values()) == {4}
    assert (config.train.steps, config.text.length) == (900, 4)


@pytest.fixture
def config():
    config = config_file.get_config()
    config.text.length, config.long.scales, config.extension.largest = 4, (1, 2, 3), 2
    config.long.multiples = (1, 8, 16)
    return config


def test_nats_are_drawn_in_the_middle_of_their_positions(config, monkeypatch):
    """Windows of 4: tokens 1 to 3, 4 to 31 and 32 to 63."""
    drawn = {}
    monkeypatch.setattr(
        length_readings.figures, "curves",
        lambda path, series, *_, **__: drawn.update({path: series}),
    )  # fmt: skip
    places = np.broadcast_to(np.arange(1.0, 64.0), (3, 2, 63))
    found = {name: {"test": places} for name in (*length_methods.UNTRAINED, length_readings.TAUGHT)}
    chosen = {(name, k): 0 for name in found for k in config.long.multiples}
    run = SimpleNamespace(figure=lambda name: name)
    length_readings.draw(config, run, found, chosen)
    for x, mean, *_ in drawn["scales.png"].values():
        # Of nats that are the places themselves means are the middles, half a token lower.
        np.testing.assert_allclose(4 * 2**x, mean + 0.5)


def test_a_length_counts_by_its_last_half_at_the_scale_chosen_on_validation(config):
    rng = np.random.default_rng(0)
    found = {
        name: {part: rng.normal(5, 1, (3, 4, 63)) for part in ("validation", "test")}
        for name in (*length_methods.UNTRAINED, *length_methods.TRAINED)
    }
    metrics, chosen = length_readings.summarised(config, found)
    # Nats have no entry of the first token: token m stands at m - 1.
    halves = {1: [2, 3], 8: range(16, 32), 16: range(32, 64)}
    means, texts = {}, {}
    for name, parts in found.items():
        for k, tokens in halves.items():
            on = {p: v[:, :, [m - 1 for m in tokens]].mean((1, 2)) for p, v in parts.items()}
            best = int(on["validation"].argmin())
            assert chosen[name, k] == best
            assert metrics[f"scale_{name}_{k}x"] == best + 1
            means[name, k], means[name, k, "all"] = on["test"][best], on["test"]
            texts[name, k] = parts["test"][best][:, [m - 1 for m in tokens]].mean(1)
            means[name, k, "validation"] = on["validation"].min()
            assert metrics[f"nats_{name}_{k}x"] == pytest.approx(on["test"][best])
    base = {k: means["interpolated", k, "all"] for k in halves}
    best = min(length_methods.UNTRAINED, key=lambda name: means[name, 16, "validation"])
    own = means["e2", 16, "all"]
    assert metrics | {
        "gain_16x": means[best, 16] - means["e2", 16],
        "gain_16x_plain": means[best, 16] - means["plain", 16],
        "gain_16x_fewer": means[best, 16] - means["e2_fewer", 16],
        "beyond_long_8x_fewer": means["e2_fewer", 8] - means["interpolated_long", 8],
        "beyond_long_8x": means["e2", 8] - means["interpolated_long", 8],
        "lost_without_scale": means["no_scale", 16] - means["e2", 16],
        "lost_without_offset_1x": means["no_offset", 1] - means["e2", 1],
        "rise_16x": means["e2", 16] / means["e2", 1] - 1,
        "rise_16x_extrapolated": base[16][0] / base[1][0] - 1,
        # Scales 2 and 3 are the largest of training and the one beyond it.
        "rise_largest": means["e2", 1, "all"][1] / base[1][0] - 1,
        "rise_largest_of_base": base[1][1] / base[1][0] - 1,
        "rise_unseen": own[2] / own[1] - 1,
        "rise_unseen_of_base": base[16][2] / base[16][1] - 1,
    } == pytest.approx(metrics)
    assert {f"gain_{k}x" for k in (8, 16)} <= set(metrics)
    assert "gain_1x" not in metrics
    pairs = {
        "gain_16x": texts[best, 16] - texts["e2", 16],
        "beyond_long_8x_fewer": texts["e2_fewer", 8] - texts["interpolated_long", 8],
        "lost_without_offset": texts["no_offset", 16] - texts["e2", 16],
    }
    for name, each in pairs.items():
        low, high = stats.t.interval(0.95, len(each) - 1, each.mean(), stats.sem(each))
        assert metrics[f"{name}_low"] == pytest.approx(low, rel=1e-4)
        assert metrics[f"{name}_high"] == pytest.approx(high, rel=1e-4)


def test_ntk_is_dynamic_scaling_of_a_text_of_so_many_windows(config):
    module = small_lm.language_model(config, attend)
    width = module.head_shape()[1]
    dynamic = rope.frequencies(
        width, module.theta, scaling={"rope_type": "dynamic", "factor": 1.0}, trained=4, length=12
    )
    own = rope.frequencies(width, length_methods.scaled(module, "ntk", 3.0).theta)
    np.testing.assert_allclose(own, dynamic, rtol=1e-5)
    assert length_methods.scaled(module, "yarn", 3.0).rope_scaling["factor"] == 3.0


@pytest.mark.slow
def test_laws_have_the_options_of_the_config(config):
    laws = length_methods.positions_of(config)
    assert set(laws) == set(length_methods.TRAINED)
    found = {name: np.asarray(law(jax.random.key(0), 400, 4)) for name, law in laws.items()}
    np.testing.assert_array_equal(found["plain"], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(found["interpolated_long"], found["plain"] / 8)
    np.testing.assert_array_equal(found["e2_fewer"], found["e2"])
    scales = {name: set((1 / np.diff(found[name], axis=1)[:, 0]).round(3)) for name in laws}
    assert scales["e2"] == scales["no_offset"] == {1, 2}
    assert scales["no_scale"] == {2}
    moved = found["no_scale"] * 2 - [0, 1, 2, 3]
    assert moved[:, :4].max() == 0  # all of so short a text are first tokens
    assert (found["pose"] * 2 == np.rint(found["pose"] * 2)).all()
    assert found["pose"].max() == 3.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"long": {"multiples": (1, 2, 16)}}, "long.multiples is .1, 2, 16., expected 1, ..., 8"),
        ({"long": {"multiples": (1, 16, 8)}}, "expected to ascend"),
        ({"long": {"scales": (1, 2, 16)}}, r"long.scales is .*, expected \[1, 16, 24\] among it"),
        ({"extension": {"long": 5}}, "extension.long is 5, expected a divisor of"),
        ({"extension": {"fewer": 5}}, "extension.fewer is 5, expected a divisor of .*steps=152"),
    ],
)
def test_wrong_configs_are_named(change, message):
    config = config_file.get_config()
    config.update(change)
    with pytest.raises(UserError, match=message):
        length_extension.check(config)
