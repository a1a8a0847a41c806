"""Combiner's recipe on tiny models; `make claims` measures models that learn."""

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import combiner as config_file
from experiments.attention import combiner, combiner_variants, late
from experiments.common import small_lm
from rml.errors import UserError
from rml.models import Llama
from rml.models.pretrained import load as load_text_model
from rml.ops.attention_parts import Visible
from tests.claims.drawn_models import drawn
from tests.system.two_steps import override

SMALL = {
    "text.length": 32, "text.vocabulary": 300, "text.windows": 4, "model.width": 16,
    "model.depth": 1, "model.heads": 2, "model.kv_heads": 2, "model.mlp": 16,
    "combiner.segment": 4, "combiner.sinks": 1, "late.length": 32,
    "late.documents": 2, "late.segment": 4, "late.tries.fixed": ("mean",),
    "late.tries.direct": ("fixed",), "late.tries.window": (2,), "costs.lengths": (64, 256),
    "costs.segment": 4, "costs.timed": 64, "combiner.features": 4,
}  # fmt: skip

DECODER = Llama(vocabulary=32, width=16, depth=1, heads=2, mlp=16)


class Costly:
    """A decoder whose layers lose what the options say, a text more than the one before."""

    depth = 6

    def __init__(self, *_):
        self.texts = 0

    def exact(self, text):
        self.texts += 1
        return SimpleNamespace(nats=np.ones(31))

    def replaced(self, exact, text, rngs, row, options, *, layers):
        lost = options.get("cost", 1.0) * layers + self.texts
        return exact.nats + np.full((len(rngs), 31), lost)


@pytest.fixture
def untrained(monkeypatch):
    """Random models in the place of trained ones, words in that of texts."""

    def random(config, run, text, attentions):
        made = drawn(small_lm.language_model(config, attentions["exact"]))["params"]
        return {name: [made] for name in attentions}

    loaded = SimpleNamespace(module=DECODER, variables=None, tokenizer=None)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (3, 32)).astype(np.int32)
    texts = [" ".join(f"word{n}" for n in row) for row in rng.integers(0, 30, (6, 100))]
    monkeypatch.setattr(small_lm, "trained", random)
    monkeypatch.setattr(late.pretrained, "load", lambda name: loaded)
    monkeypatch.setattr(late, "Decoder", Costly)
    monkeypatch.setattr(late.data, "long_documents", lambda *_, length: tokens[:, :length])
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)


def test_late_the_choice_that_loses_least_is_held_against_exact_attention(untrained):
    options = config_file.get_config().late
    options.length, options.documents = 32, 2
    options.tries = {"one": (3, 2, 4), "two": (7,)}
    rows = {"one": "combiner", "two": "window"}
    chosen, lost = late.lost_late(
        options, rows, lambda name, cost: {"cost": cost}, seed=0, loaded=late.opened(options)
    )
    assert chosen == {"one": 2, "two": 7}
    # Half of six layers, in the second and the third text that is read.
    np.testing.assert_allclose(lost["one"], [2 * 3 + 2, 2 * 3 + 3])
    np.testing.assert_allclose(lost["two"], [7 * 3 + 2, 7 * 3 + 3])


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/attention/combiner.py", SMALL)
    assert len(holds) == len(combiner.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["support_least"] == 1.0 > metrics["support_least_direct"]
    # Of 32 tokens, segments of 4: 8 times 10 pairs of 528.
    assert metrics["support_fixed_direct"] == pytest.approx(80 / 528)
    for kind in combiner.SUPPORTED:
        assert metrics["support_least_direct"] <= metrics[f"support_{kind}_direct"] < 1.0
        assert metrics[f"support_{kind}"] == 1.0
    assert metrics["excess_exact"] == 0.0
    assert metrics["gain_vertical"] == pytest.approx(
        metrics["nats_vertical_direct"] - metrics["nats_vertical"], abs=1e-5
    )
    assert max(metrics["speed_dense"], metrics["speed_in_blocks"]) == 1.0
    assert metrics["speed_one_segment"] > 0
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(combiner.CAPTIONS)


def test_gains_are_over_the_sparse_form_and_the_better_part():
    rng = np.random.default_rng(0)
    names = combiner_variants.NAMES
    nats = {name: rng.normal(i, 0.1, (2, 3, 15)) for i, name in enumerate(names)}
    found = combiner.compared(nats, near=dict.fromkeys(names, 4))
    mean = {name: own.mean() for name, own in nats.items()}
    assert mean["vertical"] < mean["horizontal"]
    wanted = {
        "gain_logsparse": mean["logsparse_direct"] - mean["logsparse"],
        # A null has the opponent of its own claim, and a window of as many keys.
        "gain_window_over_fixed_direct": mean["fixed_direct"] - mean["window"],
        "gain_window_over_logsparse_direct": mean["logsparse_direct"] - mean["window"],
        "gain_window_over_vertical_direct": mean["vertical_direct"] - mean["window_rows"],
        "gain_mixture_over_parts": mean["vertical"] - mean["mixture"],
        "gain_vertical_direct_over_parts": mean["vertical"] - mean["vertical_direct"],
        "gain_fixed_over_performer": mean["performer"] - mean["fixed"],
        "excess_mixture": mean["mixture"] - mean["exact"],
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-12)


def test_the_sparse_form_of_logsparse_sees_the_last_token_of_each_region():
    seen = combiner_variants.logsparse_seen(16, 1)
    # 13 = 8 + 4 + 1: regions end at 7, 11 and 12.
    assert np.flatnonzero(seen[13]).tolist() == [7, 11, 12, 13]
    assert not np.triu(seen, 1).any()
    wide = combiner_variants.logsparse_seen(16, 4)
    assert np.flatnonzero(wide[13]).tolist() == [7, 11, 12, 13]
    assert np.flatnonzero(wide[11]).tolist() == [7, 8, 9, 10, 11]


@pytest.mark.slow
def test_what_is_compared_sees_equally_many_keys():
    config = config_file.get_config()
    found = combiner_variants.variants(config)
    # Fixed: its segment's half, half of the other segments, and every key once in a region.
    assert found["fixed"].keys == 17 / 2 + 15 / 2 + 240 / 256
    for name in ("logsparse", "fixed_direct"):
        assert found[name].keys == pytest.approx(found["fixed"].keys, rel=0.02)
    # Of windows of a whole width none is nearer.
    assert abs(found["window"].keys - found["fixed"].keys) < 0.5
    own = combiner_variants.logsparse_seen(256, found["logsparse_direct"].segment)
    assert found["logsparse_direct"].keys == own.sum() / 256
    assert found["logsparse_direct"].keys == pytest.approx(found["fixed"].keys, rel=0.03)
    assert found["vertical_direct"].keys == pytest.approx(found["vertical"].keys, rel=0.03)
    same, ones = jnp.zeros((1, 256, 1, 4)), jnp.eye(256)[None, :, None]
    for name, window in combiner.WINDOWS.items():
        weights, _ = found[window].attention(same, same, ones, Visible(causal=True))
        seen = (weights[0, :, 0] > 0).sum(axis=-1)
        assert seen.mean() == pytest.approx(found[f"{name}_direct"].keys, rel=0.03)
        assert found[window].keys == pytest.approx(float(seen.mean()), rel=1e-6)
    # The mixture's parts share what is direct.
    direct = combiner_variants.direct_keys("vertical", 256, 16)
    parts = found["vertical"].keys + found["horizontal"].keys
    assert found["mixture"].keys == pytest.approx(parts - direct)
    for name in ("fixed_direct", "vertical_direct"):
        kind, segment = name.split("_")[0], found[name].segment
        i, j = np.indices((256, 256))
        direct = i // segment == j // segment
        if kind == "vertical":
            direct |= i % segment == j % segment
        assert found[name].keys == (direct & (j <= i)).sum() / 256
    own = combiner_variants.late_options(config, "window", 16)
    seen = np.minimum(np.arange(1, 1025), own["width"] + 16)
    wanted = 129 / 2 + 7 / 2 + 896 / 1024
    assert seen.mean() == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"late.name": "smollm9"}, "unknown pretrained model 'smollm9'"),
        ({"late.documents": 4}, "late.documents is 4, expected at most 3: the test texts of"),
        ({"late.name": "minilm"}, "late.name is minilm, expected a decoder such as smollm2"),
    ],
)
def test_what_late_layers_need_is_opened_before_any_training(
    untrained, monkeypatch, changes, message
):
    def load(name):
        if name == "smollm9":
            return load_text_model(name)
        module = nn.Dense(2) if name == "minilm" else DECODER
        return SimpleNamespace(module=module, tokenizer=None)

    def train(*_):
        raise AssertionError("a model was trained")

    monkeypatch.setattr(late, "pretrained", SimpleNamespace(load=load))
    monkeypatch.setattr(small_lm, "trained", train)
    monkeypatch.setattr(combiner_variants, "speeds", train)
    config = override(config_file.get_config(), SMALL | changes)
    with pytest.raises(UserError, match=message):
        combiner.run(config, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combiner": {"segment": 200}}, "combiner.segment is 200, expected 2 to 128"),
        ({"combiner": {"pool": "median"}}, "unknown combiner.pool 'median'; did you mean 'mean'"),
        ({"late": {"tries": {"window": (4,)}}}, "expected equally many"),
        ({"late": {"tries": {"direct": ("fixed", "axial")}}}, "unknown late.tries.direct 'axial'"),
        ({"late": {"tries": {"fixed": ("max", "men")}}}, "late.tries.fixed 'men'; did you mean"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        combiner.check(config)
