"""CHESS's recipe on a tiny decoder; `make claims` measures SmolLM2."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from configs.sparsity import chess as config_file
from experiments.sparsity import (
    chess,
    chess_cloze,
    chess_figures,
    chess_measures,
    chess_readings,
)
from experiments.sparsity.chess_cloze import Choices
from experiments.sparsity.chess_readings import Reader, Reading
from rml.data.errors import DataError
from rml.errors import UserError
from rml.models import Llama
from rml.models.block_hooks import Thresholds
from rml.sparsity import load_thresholds
from rml.training import RunDirectory
from tests.system.two_steps import override, read

SMALL = {
    "calibration.documents": 2, "calibration.length": 16, "reading.documents": 3,
    "reading.length": 12, "shares": (0.5, 0.7), "timing.wide": (64, 8), "timing.narrow": (32, 8),
    "timing.repeats": 1, "layers.documents": 2, "layers.length": 8, "choices.count": 5,
    "choices.context": 6, "choices.line": 4,
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """A random decoder in the place of SmolLM2, random tokens in that of texts."""
    module = Llama(vocabulary=30, width=8, depth=2, heads=2, mlp=16, tied=True)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    loaded = SimpleNamespace(module=module, variables=variables, tokenizer=None)

    def documents(tokenizer, texts, *, length, most):
        found = np.array([[(ord(c) + i) % 30 for i in range(length)] for c in texts], np.int32)
        return found[:most]

    def choices(tokenizer, texts, *, rng, count, context, line):
        lines = rng.integers(30, size=(count, 4, line))
        return Choices(
            rng.integers(30, size=(count, context)), lines, rng.integers(1, line + 1, (count, 4))
        )

    monkeypatch.setattr(chess_cloze, "draw_choices", choices)
    monkeypatch.setattr(chess_readings.pretrained, "load", lambda name: loaded)
    monkeypatch.setattr(chess_readings.data, "load_documents", lambda *_, **__: list("abcdefgh"))
    monkeypatch.setattr(chess_readings.data, "long_documents", documents)
    return loaded


def test_what_a_share_is_short_of_a_whole_number_is_not_lost():
    given = SimpleNamespace(module=Llama(vocabulary=30, width=8, depth=1, heads=1, mlp=100))
    assert Reader.top(given, 0.29) == "top_silu:71"  # 0.29 * 100, in floats, is below 29
    assert Reader.top(given, 0.295) == "top_silu:71"


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(tiny, measure, tmp_path):
    path = "configs/sparsity/chess.py"
    RunDirectory(tmp_path / "run", override(read(path), SMALL).to_dict()).close()
    (tmp_path / "run" / chess.THRESHOLDS).write_bytes(b"torn")  # by a run that was stopped
    metrics, holds = measure(path, SMALL)
    assert len(holds) == len(chess.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    # Shares on test documents are near those of training documents.
    assert metrics["zeros_abs_0.5"] == pytest.approx(0.5, abs=0.2)
    assert metrics["zeros_top_0.5"] == pytest.approx(0.5, abs=0.01)
    assert metrics["gain_half"] == pytest.approx(
        1 - metrics["nats_abs_0.5"] / metrics["nats_uniform_0.5"], abs=1e-5
    )
    assert metrics["mlp_read"] == pytest.approx((3 - 2 * metrics["zeros_abs_0.5"]) / 3, abs=1e-5)
    assert 0 < metrics["share_off"] < 0.5
    assert metrics["share_off_other_layer"] not in (metrics["share_off"], 0)
    # The same shares in another order; their mean is that of all.
    for name in ("by_layer", "by_other_layer"):
        assert metrics[f"zeros_{name}_0.7"] == pytest.approx(0.7, abs=0.2)
    assert metrics["nats_by_layer_0.7"] != metrics["nats_abs_0.7"]
    assert metrics["divergence_most"] > metrics["divergence_least"] > 0
    assert metrics["cloze_gain"] == pytest.approx(
        metrics["cloze_abs"] - metrics["cloze_uniform"], abs=1e-6
    )
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(chess.CAPTIONS)
    kept = load_thresholds(tmp_path / "run" / "thresholds.safetensors")
    assert kept.gate.shape == (2, 16)
    assert kept.output.shape == (2,)
    assert kept.key is None


def test_weights_read_are_counted_by_hand():
    module = Llama(vocabulary=9, width=8, depth=1, heads=4, kv_heads=2, mlp=16)
    assert chess_readings.weights_of_layer(module) == {
        "mlp": 128, "query": 64, "key": 32, "all": 3 * 128 + 2 * 64 + 2 * 32
    }  # fmt: skip
    live = np.full((1, 16), 0.25)
    readings = {
        "abs": Reading(np.ones(3), np.array([0.75]), live),
        "product": Reading(np.ones(3), np.array([0.6]), live),
    }
    found = chess_measures.costs(module, readings)
    assert found["mlp_read"] == pytest.approx((1 + 2 * 0.25) / 3)
    assert found["mlp_read_product"] == pytest.approx((2 + 0.4) / 3)
    read = 128 * 1.5 + 64 * 2 / 2 + 2 * 32
    assert found["layer_read_selective"] == pytest.approx(read / 576)
    size = {
        "product": 128 * 2.4, "abs": 128 * 1.8, "attention": 128 * 1.8 - 0.3 * 2 * 64,
        "selective_every": 128 * 1.8 - 0.3 * (2 * 64 + 2 * 32),
    }  # fmt: skip
    for rule, mlp in size.items():
        wanted = (mlp + 2 * 64 + 2 * 32) / 576
        assert chess_measures.layer_read(module, rule, 0.3, 0.6) == pytest.approx(wanted)
    assert found["mlp_read_batch_8"] == pytest.approx((1 + 2 * (1 - 0.75**8)) / 3, rel=1e-5)


def test_gains_are_relative_and_have_their_signs():
    live = np.ones((1, 4))
    nats = {
        "uniform": (3.0, 5.0), "abs": (2.0, 4.0), "rms": (2.0, 4.5), "abs_down": (2.0, 3.0),
        "shuffled": (5.0, 5.0), "product": (1.0, 2.0), "top": (1.5, 4.0), "selective": (2.0, 5.0),
        "selective_every": (4.0, 5.0), "by_layer": (1.0, 4.0), "by_other_layer": (2.0, 5.0),
    }  # fmt: skip
    own = {name: Reading(np.array(x), np.array([0.5]), live) for name, x in nats.items()}
    found = chess_measures.summarised(own["product"], {0.5: own, 0.7: own})
    assert found["gain_half"] == pytest.approx(1 / 4)
    assert found["gain_half_shuffled"] == pytest.approx(-1 / 4)
    assert found["gain_down"] == pytest.approx(0.5 / 3)
    assert found["gain_down_over_rms"] == pytest.approx(0.75 / 3.25)
    assert found["gain_rms"] == pytest.approx(-0.25 / 3)
    assert found["moments_apart"] == pytest.approx(0.25 / 3.25)
    assert found["selective_cost"] == pytest.approx(0.5 / 3)
    assert found["every_cost"] == pytest.approx(1.5 / 3)
    assert found["gain_layers"] == pytest.approx(0.5 / 3)
    assert found["gain_layers_shuffled"] == pytest.approx(-0.5 / 3)
    assert found["nats_abs_0.7"] == 3.0
    assert found["nats_dense"] == 1.5


def test_a_layer_is_off_by_its_own_share(monkeypatch):
    half = {"abs": Reading(np.ones(2), np.array([0.52, 0.45, 0.5]), np.ones((3, 2)))}
    gate = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    monkeypatch.setattr(
        chess_measures, "thresholds_of", lambda found, sparsity: Thresholds(gate=gate)
    )
    read = []

    def other(texts, thresholds):
        read.append(np.asarray(thresholds.gate))
        return Reading(np.ones(2), np.array([0.9, 0.4, 0.5]), np.ones((3, 2)))

    found = chess_measures.shares_off(SimpleNamespace(code=None, read=other), None, half)
    assert found == pytest.approx({"share_off": 0.05, "share_off_other_layer": 0.4})
    np.testing.assert_array_equal(read, [[[5, 6], [1, 2], [3, 4]]])


def test_every_rule_is_drawn_at_its_share_of_a_layers_weights(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        chess_figures.figures, "curves", lambda path, series, *_, **__: drawn.update(series)
    )
    monkeypatch.setattr(chess_figures.figures, "bars", lambda *_, **__: None)
    module = Llama(vocabulary=9, width=8, depth=1, heads=4, kv_heads=2, mlp=16)
    rules = [rule for rule in chess_figures.NAMES if rule != "random"]
    own = {rule: Reading(np.array([3.0, 4.0]), np.array([0.6]), np.ones((1, 4))) for rule in rules}
    dense = own["abs"]._replace(nats=np.array([2.0, 2.5]))
    readings = {0.7: {"rms": own["rms"]}, 0.5: own | {"random": dense}}
    chess_figures.of_nats(SimpleNamespace(figure=lambda name: name), module, dense, readings)
    assert list(drawn) == [chess_figures.NAMES[rule] for rule in rules]
    for rule in rules:
        read = [chess_measures.layer_read(module, rule, 0.5, 0.6)] * (1 + (rule == "rms"))
        np.testing.assert_allclose(drawn[chess_figures.NAMES[rule]][0], read)
        np.testing.assert_allclose(drawn[chess_figures.NAMES[rule]][1], 1.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (0.3, 0.5)}, r"shares is \(0.3, 0.5\), expected 0.5, 0.7"),
        ({"rules": {"most": ("abs",)}}, "rules.most is .*, expected abs_down, by_layer, by_other"),
        ({"reading": {"documents": 1}}, "reading.documents is 1, expected at least 2"),
        ({"rules": {"other": ("abs", "absolute")}}, "unknown rule of config.rules 'absolute'"),
        ({"layers": {"documents": 9}}, "layers.documents is 9, expected at most calibration.*, 8"),
        ({"layers": {"length": 513}}, "layers.length is 513, expected at most .*length, 512"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        chess.run(config, None)  # before anything is read


@pytest.mark.slow
def test_a_line_is_as_probable_as_its_tokens_after_the_context(tiny):
    rng = np.random.default_rng(1)
    sizes = np.array([[3, 1, 4, 2], [4, 4, 2, 1]])
    choices = Choices(rng.integers(30, size=(2, 6)), rng.integers(30, size=(2, 4, 4)), sizes)
    module, variables = tiny.module, tiny.variables
    gate = jnp.full((2, 16), 0.3)
    found = chess_cloze.odds(module, variables, choices, Thresholds(gate=gate))

    @jax.jit
    def logits(tokens):
        hidden = module.apply(variables, tokens, thresholds=Thresholds(gate=gate))
        return module.apply(variables, hidden, method="logits")

    for context, lines, size, own in zip(*choices, found, strict=True):
        whole = np.concatenate([np.tile(context, (4, 1)), lines], axis=1)
        log_p = log_softmax(np.asarray(logits(jnp.asarray(whole)), np.float64), axis=-1)
        scores = [np.mean([log_p[i, 5 + j, lines[i, j]] for j in range(size[i])]) for i in range(4)]
        np.testing.assert_allclose(own, softmax(scores), rtol=1e-4)


def test_lines_to_choose_among_are_of_one_document(monkeypatch):
    encode = lambda tokenizer, texts, **_: [np.frombuffer(t.encode(), np.uint8) for t in texts]  # noqa: E731
    monkeypatch.setattr(chess_cloze.tokens, "encode", encode)
    rows = [f"{letter * 20}\n" for letter in "abcdefg"]
    short = ["tiny\n", *rows[:3]]
    drawn = lambda texts, **changes: chess_cloze.draw_choices(  # noqa: E731
        None, texts, **{"rng": np.random.default_rng(0), "count": 1, "context": 30, "line": 24}
        | changes
    )  # fmt: skip
    contexts, lines, sizes = drawn(["".join(short), "".join([*rows, rows[2]])])
    assert bytes(contexts[0].astype(np.uint8)) == "".join(rows[:2]).encode()[-30:]
    texts = [bytes(own.astype(np.uint8)).rstrip(b"\0").decode() for own in lines[0]]
    assert texts[0] == rows[2]
    assert len(set(texts)) == 4
    assert set(texts) <= set(rows[2:])
    assert (sizes == 21).all()
    assert drawn(["".join(rows)], line=5).lines.shape == (1, 4, 5)
    with pytest.raises(DataError, match="0 of 1 documents have 4 lines to choose among"):
        drawn(["".join(short)])
    # A line that equals the true one where it is cut off is no other choice.
    ends = "".join(f"{'c' * 20}{i}\n" for i in range(4))
    assert drawn([ends + ends], line=21).lines.shape == (1, 4, 21)
    with pytest.raises(DataError, match="0 of 1 documents have 4 lines to choose among"):
        drawn([ends + ends], line=20)
