"""ProSparse's recipe on tiny models; `make claims` measures models that learn."""

import jax
import numpy as np
import pytest

from configs.sparsity import prosparse as config_file
from experiments.common import small_lm
from experiments.sparsity import (
    prosparse,
    prosparse_measures,
    prosparse_training,
    prosparse_uses,
)
from experiments.sparsity.prosparse_training import Reading
from rml.errors import UserError
from rml.sparsity import Statistics
from tests.claims.drawn_models import drawn

SMALL = {
    "text.length": 16, "text.vocabulary": 300, "text.windows": 4, "model.width": 16,
    "model.depth": 2, "model.heads": 2, "model.kv_heads": 2, "model.mlp": 16, "train.steps": 4,
    "train.batch_size": 4, "train.checkpoint_every": 4, "train.log_every": 2,
    "optimizer.warmup_steps": 1, "continued.steps": 20, "continued.warmup_steps": 1,
    "predicted.windows": 4, "predicted.rank": 2, "predicted.steps": 4, "predicted.batch_size": 8,
    "timing.wide": (64, 8), "timing.narrow": (32, 8), "timing.repeats": 1,
}  # fmt: skip


@pytest.fixture
def little_training(monkeypatch):
    """Words in the place of texts; what is not trained with ReLU is not trained at all."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in row) for row in rng.integers(0, 30, (6, 100))]
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)

    def untrained(config, run, text):
        return [drawn(small_lm.language_model(config))["params"]]

    def further(config, run, text, base, activation, changes):
        if activation == "relu":
            return prosparse_training.further(config, run, text, base, activation, changes)
        return dict.fromkeys(changes, base)

    monkeypatch.setattr(prosparse, "base_models", untrained)
    monkeypatch.setattr(prosparse, "further", further)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(little_training, measure, tmp_path):
    metrics, holds = measure("configs/sparsity/prosparse.py", SMALL)
    assert len(holds) == len(prosparse.CLAIMS)
    wrong = {name for name, value in metrics.items() if not np.isfinite(value)}
    assert wrong <= set(prosparse.NO_POINT)
    assert metrics["sparsity_silu"] == 0.0
    assert 0.3 < metrics["sparsity_relu"] < 0.7
    assert metrics["sparsity_pro"] >= metrics["sparsity_progressive_4"] - 0.01
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(prosparse.CAPTIONS)
    lines = (tmp_path / "run" / "methods" / "relu" / "metrics.jsonl").read_text()
    assert "train/factor/1" in lines


def test_prose_is_read_before_any_training(little_training, monkeypatch):
    def load_documents(name, *_, **__):
        raise UserError(f"{name} is not there")

    monkeypatch.setattr(prosparse_uses.data, "load_documents", load_documents)
    monkeypatch.setattr(prosparse, "read_text", lambda config: small_lm.Text(None, {}))
    monkeypatch.setattr(prosparse, "held_out_windows", lambda *_: {"validation": 0, "test": 0})
    monkeypatch.delattr(prosparse, "base_models")  # nothing calls it
    config = config_file.get_config()
    with pytest.raises(UserError, match=f"{config.other.name} is not there"):
        prosparse.run(config, None)


def test_a_variant_has_the_factor_of_its_form():
    config = config_file.get_config()
    config.train.steps = 1000
    names = prosparse_training.penalties(config)
    assert len(names) == 1 + 2 * 5 + 2

    def at(name, step):
        own = config.copy_and_resolve_references()
        own.penalty.update(names[name])
        return float(prosparse_training.factor(own, step))

    for name in names:
        assert at(name, 299) == 0
    assert at("progressive_2", 300) == pytest.approx(2 * 0.025)
    assert at("progressive_2", 485) == pytest.approx(2 * (0.025 + 0.25) / 2, rel=1e-3)
    assert at("linear_4", 849) == pytest.approx(4 * (0.25 + 0.75 * 122 / 243), rel=1e-3)
    assert at("progressive_2", 999) == at("constant_2", 300) == 2
    assert names["gate_4"] == {"peak": 4.0, "gate": 1.0}
    assert at("relu", 999) == 0


@pytest.mark.slow
def test_without_a_penalty_a_step_is_one_of_plain_training_bit_for_bit():
    config = config_file.get_config()
    config.update({
        "model": {"width": 8, "depth": 2, "heads": 2, "kv_heads": 2, "mlp": 12,
                  "activation": "relu"},
        "text": {"length": 8, "vocabulary": 30, "windows": 4},
        "train": {"batch_size": 4, "steps": 40},
        "optimizer": {"warmup_steps": 0},
        "stages": {"start": 0.0},
    })  # fmt: skip
    rng = np.random.default_rng(0)
    streams = {part: rng.integers(0, 30, 200).astype(np.int32) for part in small_lm.PARTS}
    text = small_lm.Text(None, streams)
    start = drawn(small_lm.language_model(config))["params"]

    def stepped(task):
        batch = next(iter(task.batches()))
        state, metrics = jax.jit(task.step)(jax.jit(task.init)(jax.random.key(0)), batch)
        return state.params, metrics

    plain, _ = stepped(small_lm.task(config, text, start=start))
    own, metrics = stepped(prosparse_training.continued(config, text, lambda _: start))
    assert metrics["size"] > 0 == metrics["factor"]
    jax.tree.map(np.testing.assert_array_equal, own, plain)
    before, after = (params["blocks"]["gate"]["kernel"] for params in (start, own))
    assert (before != after).all()


def reading(nats, zeros, live=None):
    zeros = np.asarray(zeros, float)
    live = np.ones((1, len(zeros), 4)) if live is None else live
    of_windows = np.tile(zeros, (len(nats), 1))
    return Reading(np.asarray(nats, float), of_windows, live, np.ones(len(zeros)))


@pytest.fixture
def found():
    """Readings whose nats grow with sparsity by kind."""
    config = config_file.get_config()
    found = {"relu": reading([2.0, 3.0], [0.5, 0.5])}
    for i, peak in enumerate(config.peaks):
        zeros = 0.6 + 0.08 * i
        found[f"progressive_{peak:g}"] = reading(
            np.array([2.1, 3.1]) + 0.1 * i, [zeros - 0.1, zeros + 0.1]
        )
        found[f"constant_{peak:g}"] = reading(np.array([2.3, 3.3]) + 0.1 * i, [zeros, zeros])
    found["linear_4"] = reading([2.35, 3.35], [0.76, 0.76])
    found["gate_4"] = reading([2.2, 3.2], [0.84, 0.84])
    for name in ("pro", "pro_random", "random", "chess", "top", "silu", "shifted"):
        found[name] = reading([2.5, 3.5], [0.9, 0.95])
    return config, found


def test_variants_are_compared_at_equal_sparsity(found):
    config, own = found
    # Between the second and the third constant one.
    wanted = reading([0, 0], [0.72, 0.72])
    nats = prosparse_measures.at_sparsity(config, own, "constant", wanted)
    np.testing.assert_allclose(nats, [2.45, 3.45])
    beyond = prosparse_measures.at_sparsity(config, own, "constant", reading([0, 0], [0.99]))
    np.testing.assert_allclose(beyond, own["constant_16"].nats)
    metrics = prosparse_measures.summarised(config, own, "progressive_8")
    # At its sparsity of 0.84 the constant factor loses 0.2 nats more, of 2.9.
    assert metrics["gain_over_constant"] == pytest.approx(0.2 / 2.9)
    # At the line's 0.76 the sine has 2.8 nats, the line 2.85.
    assert metrics["gain_over_linear"] == pytest.approx(0.05 / 2.8)
    # At the gate's 0.84 the sine has 2.9 nats, the gate 2.7.
    assert metrics["gain_over_gate"] == pytest.approx(-0.2 / 2.9)
    assert metrics["excess_pro"] == pytest.approx(0.5 / 2.5)
    assert metrics["first_layer_denser"] == pytest.approx(0.05)
    assert metrics["mlp_read"] == pytest.approx((1 + 2 * 0.075) / 3)
    assert metrics["mlp_read_relu"] == pytest.approx(2 / 3)


def test_zeros_and_what_follows_from_them_have_intervals_over_windows(found):
    config, own = found
    zeros = np.array([[0.8, 0.9], [0.9, 1.0], [0.6, 0.9]])
    own["pro"] = own["pro"]._replace(zeros=zeros)
    metrics = prosparse_measures.summarised(config, own, "progressive_8")
    half = 4.302653 * zeros.mean(1).std(ddof=1) / np.sqrt(3)
    assert metrics["sparsity_pro"] == pytest.approx(0.85)
    assert metrics["sparsity_pro_low"] == pytest.approx(0.85 - half)
    assert metrics["mlp_read"] == pytest.approx((1 + 2 * 0.15) / 3)
    assert metrics["mlp_read_high"] == pytest.approx((1 + 2 * (0.15 + half)) / 3)
    assert metrics["first_layer_denser_low"] < metrics["first_layer_denser"]
    assert metrics["sparsity_relu_low"] == metrics["sparsity_relu_high"] == 0.5


def test_channels_of_seeds_are_counted_apart(found, monkeypatch):
    """A quarter of the channels of each of two seeds is always live, another one."""
    config, own = found
    first, second = (np.arange(256) // 64 == at for at in (0, 2))

    def read(module, params, windows, thresholds):
        live = np.tile(np.asarray(params, np.float32), (2, 3, 1))
        size = np.full((2, 3), params.sum(), np.float32)
        zeros = np.stack([np.full(3, params[:64].mean()), np.full(3, 0.5)])
        nats = np.array([[2.0, 4.0], [5.0, 7.0]]) + params[0]
        return nats, Statistics(size, size, zeros, zeros, live)

    monkeypatch.setattr(prosparse_training, "_read", read)
    reader = prosparse_training.Reader(config)
    together = reader.read("relu", [first, second], np.zeros((2, 4), np.int32))
    np.testing.assert_allclose(together.nats, [3.5, 6.5])
    np.testing.assert_allclose(together.zeros, [[0.5] * 3] * 2)
    np.testing.assert_allclose(together.size, [64] * 3)
    metrics = prosparse_measures.summarised(
        config, own | {"pro": together, "relu": together}, "progressive_8"
    )
    for end in ("", "_relu"):
        assert metrics[f"never_live{end}"] == 0.75
        assert metrics[f"mlp_read_batch_8{end}"] == pytest.approx((1 + 2 * 0.25) / 3)
    kept = np.asarray(
        prosparse.randomly(config, together, together._replace(zeros=np.array(0.75))).gate
    )
    assert kept.shape == (3, 256)

    monkeypatch.setattr(prosparse_uses, "calibrate", lambda *args, **options: None)
    text = small_lm.Text(None, {"train": np.zeros(99, np.int32)})
    config.text.length = 4
    thin = prosparse_uses.thinned(reader, text, [first, second], np.zeros((2, 4), np.int32), 0.5)
    jax.tree.map(np.testing.assert_array_equal, thin, together)


@pytest.mark.slow
def test_windows_are_read_one_by_one():
    config = config_file.get_config()
    config.model.update({"width": 8, "depth": 3, "heads": 2, "kv_heads": 2, "mlp": 12})
    config.text.update({"length": 8, "vocabulary": 30, "windows": 3})
    reader = prosparse_training.Reader(config)
    params = [drawn(reader.module("relu"))["params"]]
    windows = np.random.default_rng(0).integers(0, 30, (3, 9)).astype(np.int32)
    together = reader.read("relu", params, windows)
    assert together.zeros.shape == (3, 3)
    assert together.live.shape == (1, 3, 12)
    for i in range(3):
        alone = reader.read("relu", params, windows[i : i + 1])
        np.testing.assert_allclose(together.zeros[i], alone.zeros[0], atol=1e-6)
        np.testing.assert_allclose(together.nats[i], alone.nats[0], rtol=1e-5)
    assert np.ptp(together.zeros.mean(1)) > 0


def test_the_fewest_nats_among_the_sparse_are_chosen(found):
    config, own = found
    assert prosparse.choose(config, own) == "progressive_16"
    own["progressive_2"] = reading([9.0, 9.0], [0.9, 0.9])
    assert prosparse.choose(config, own) == "progressive_16"
    own["progressive_2"] = reading([2.0, 2.0], [0.9, 0.9])
    assert prosparse.choose(config, own) == "progressive_2"


def test_the_law_of_the_paper_is_found_again(found):
    config, own = found
    for peak in config.peaks:
        zeros = 1 - np.exp(3.2 - 1.5 * peak**0.5) / 100
        own[f"progressive_{peak:g}"] = reading([1, 1], [zeros, zeros])
    r2, fit = prosparse_measures.law(config, own)
    assert r2 > 0.9999
    np.testing.assert_allclose(fit, [1.5, 0.5, 3.2], rtol=0.02)
    assert prosparse_measures.law(config, own, [3, 0, 4, 1, 2])[0] < 0.9
    metrics = prosparse_measures.summarised(config, own, "progressive_8")
    assert [metrics[f"law_{name}"] for name in "abc"] == list(fit)


def test_a_law_that_is_not_found_has_no_number(found, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("Optimal parameters not found")

    monkeypatch.setattr(prosparse_measures.optimize, "curve_fit", fails)
    metrics = prosparse_measures.summarised(*found, "progressive_8")
    assert {name for name, value in metrics.items() if np.isnan(value)} == {
        "law_r2", "law_r2_shuffled", "law_a", "law_b", "law_c"
    }  # fmt: skip


class Told:
    """Reads the zeros that it is told for a threshold, or for parameters."""

    def __init__(self, zeros):
        self.zeros = zeros

    def at_threshold(self, threshold):
        return threshold

    def read(self, activation, params, windows, thresholds):
        return reading([1], [self.zeros[thresholds]])


def test_a_threshold_that_adds_no_point_is_not_one_that_does():
    config = config_file.get_config()
    few = {0.01: 0.805, 0.02: 0.808, 0.05: 0.8099, 0.1: 0.8099}

    def chosen(zeros):
        return prosparse.choose_threshold(config, Told(zeros), [], None, reading([1], [0.8]))

    assert chosen(few) == (0.1, False)
    assert chosen(few | {0.05: 0.811}) == (0.05, True)
    cost = next(claim for claim in prosparse.CLAIMS if claim.metric == "threshold_cost")
    assert not cost.meets(prosparse.NO_POINT["threshold_cost"])


def test_code_is_held_against_prose_in_its_own_tokens(monkeypatch):
    config = config_file.get_config()
    config.text.update({"length": 4, "windows": 2})
    monkeypatch.setattr(
        prosparse_uses.data, "load_documents", lambda name, split, **_: [name, split]
    )
    monkeypatch.setattr(prosparse_uses, "stream", lambda tokenizer, own: np.array([tokenizer] * 9))
    read = []
    told = Told({"cut": 0.7, None: 0.6})
    reader = prosparse_uses.Reader(config)
    reader.read = lambda *given: read.append(given[2]) or told.read(*given)
    models = {"pro": ([], "cut", reading([1], [0.9, 0.8])), "relu": ([], None, reading([1], [0.5]))}
    windows = prosparse_uses.prose_windows(config, small_lm.Text(7, {}))
    found = prosparse_uses.on_prose(reader, windows, models)
    assert (np.stack(read) == np.full((2, 2, 4), 7)).all()
    wanted = {"prose_sparsity_pro": 0.7, "code_sparser_pro": 0.15,
              "prose_sparsity_relu": 0.6, "code_sparser_relu": -0.1}  # fmt: skip
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks": (1.0, 2.0)}, "expected at least 5 that ascend"),
        ({"penalty": {"peak": 2.0}}, "penalty.peak is 2.0, expected 0: the last factors are those"),
        ({"stages": {"start": 0.5}}, "expected to ascend from 0 to 1"),
        ({"stages": {"ends": (), "shares": ()}}, "expected to ascend from 0 to 1"),
        ({"stages": {"shares": (0.5, 1.0)}}, "stages has 2 shares and 5 ends"),
        ({"continued": {"steps": 10}}, r"steps \[4, 6, 7, 10, 10\] of 10, expected steps that asc"),
        ({"thresholds": (0.01, 0.02)}, "thresholds is"),
        ({"thresholds": ()}, r"thresholds is \(\), expected two or more"),
        ({"thresholds": (0.0,)}, r"expected two or more, ascending from 0"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        prosparse.run(config, None)  # before anything is read
