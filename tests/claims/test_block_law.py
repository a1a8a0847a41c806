"""The recipe on blocks drawn by distance, on a tiny decoder."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import block_law as config_file
from experiments.attention import block_law, late
from rml.attention import causal_weights, draw_pattern, keep_probabilities, shard_pattern
from rml.errors import UserError
from rml.evaluation import program_flops
from rml.models import Llama
from rml.ops.attention_parts import attend_part

SMALL = {
    "block": 8, "budget": 2.5, "sinks": 2, "draws": 4, "measured_layers": (0,),
    "late.length": 64, "late.documents": 2, "late.tries.law": ("harmonic",),
    "late.tries.uniform": (False,), "late.tries.strided": (2,), "late.tries.window": (2,),
}  # fmt: skip


class Lossy:
    """A decoder that loses a nat a token by blocks that are drawn, half of one by others."""

    depth = 6

    def __init__(self, *_):
        pass

    def exact(self, text):
        return SimpleNamespace(nats=np.ones(len(text) - 1))

    def replaced(self, exact, text, rngs, row, options, *, layers):
        lost = 1.0 if row == "block_law" else 0.5
        return exact.nats + np.full((len(rngs), len(text) - 1), lost + text[0] / 100)


@pytest.fixture
def tiny(monkeypatch):
    module = Llama(vocabulary=29, positions=64, width=16, depth=2, heads=2, mlp=16, tied=True)
    variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), int)))
    variables = jax.tree.map(lambda leaf: 4 * leaf, variables)
    loaded = SimpleNamespace(module=module, variables=variables, tokenizer=None)
    tokens = np.random.default_rng(0).integers(0, 29, (3, 64)).astype(np.int32)
    for place in (block_law, late):
        monkeypatch.setattr(place.pretrained, "load", lambda name: loaded)
    monkeypatch.setattr(block_law, "speeches", lambda *_: tokens)
    monkeypatch.setattr(late, "Decoder", Lossy)
    monkeypatch.setattr(late.data, "load_documents", lambda *_, **__: [])
    monkeypatch.setattr(late.data, "long_documents", lambda *_, length: tokens[:, :length])


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(tiny, measure, tmp_path):
    metrics, holds = measure("configs/attention/block_law.py", SMALL)
    assert len(holds) == len(block_law.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["late_gain_over_window"] == pytest.approx(-0.5)
    # Of plain sums a part is missing, whatever is drawn; the weights make up for it.
    assert metrics["sums_apart_plain"] > 0.3 > metrics["sums_apart"]
    assert metrics["sums_apart"] > 2 * metrics["sums_bias"]  # queries err on both sides
    assert metrics["gain_over_uniform"] == pytest.approx(
        1 - metrics["error_harmonic"] / metrics["error_uniform"], abs=1e-5
    )
    assert 0 < metrics["flops_law"] < metrics["flops_exact"]
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(block_law.CAPTIONS)


def test_no_claim_is_on_a_gain_that_strides_have_as_well():
    """Blocks at strides, which nothing draws, lose less than the law does."""
    lost = {name: np.array(own) for name, own in
            (("uniform", [0.5, 0.9]), ("strided", [0.1, 0.3]), ("law", [0.2, 0.6]))}  # fmt: skip
    found = block_law.late_gains(lost)
    assert found["late_gain_over_uniform"] == pytest.approx(0.3)
    assert found["late_gain_of_strided_over_uniform"] == pytest.approx(0.5)
    assert not {claim.metric for claim in block_law.CLAIMS} & set(found)


def test_what_is_compared_sees_equally_many_keys():
    config = config_file.get_config()
    found = block_law.keys(config)
    # Eight blocks of 32, of whose last one a query sees 16.5 keys on average.
    for name in ("law", "uniform"):
        assert found[name] == pytest.approx(8 * 32 - 15.5, rel=1e-6)
    for name in ("strided", "window"):
        assert found[name] == pytest.approx(found["law"], rel=0.05)
    assert found["exact"] == 1025 / 2
    assert block_law.options(config, "uniform", True)["law"].reweight
    assert block_law.options(config, "law", "geometric")["law"].kind == "geometric"


def test_operations_are_those_of_visited_blocks():
    config = config_file.get_config()
    config.update(dict(block=4, budget=2.0, late=dict(length=24)))
    config.late.tries.update(dict(window=(3, 1), strided=(2, 3)))
    module = SimpleNamespace(heads=3, head_shape=lambda: (1, 8))
    rngs = jax.random.split(jax.random.key(0), 4)
    found = block_law.operations(config, module, rngs)
    arrays = [jax.ShapeDtypeStruct((1, 1, 4, 8), jnp.float32)] * 3
    a_block = program_flops(attend_part, *arrays)
    assert found["flops_exact"] == 3 * 21 * a_block
    # Blocks by pairs of tokens: a window visits those in which any query sees any key.
    own = block_law.options(config, "window", 3)
    query, key = np.arange(24)[:, None], np.arange(24)
    seen = (key <= query) & ((query - key < own["width"]) | (key < own["sinks"]))
    visited = seen.reshape(6, 4, 6, 4).any((1, 3)).sum()
    assert found["flops_window"] == 3 * visited * a_block < found["flops_exact"]
    law = block_law.options(config, "law", "harmonic")["law"]
    keep = keep_probabilities(6, law, causal_weights(6))
    drawn = [float(draw_pattern(rng, keep, heads=3).sum()) for rng in rngs]
    assert found["flops_law"] == np.mean(drawn) * a_block
    own = block_law.options(config, "strided", 2)
    pattern = shard_pattern(6, heads=1, shards=1, local=own["local"], stride=2)
    assert found["flops_strided"] == 3 * pattern.sum() * a_block


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 100}, "block=100 and budget=8.0 for 1024 tokens, expected whole blocks"),
        ({"budget": 17.0}, "expected whole blocks and 1 to 16.5"),
        ({"late": {"tries": {"window": (4,)}}}, "expected equally many"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        block_law.check(config)
