"""ActQKV's recipe on a small random model; `make claims` measures a trained one."""

import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import actqkv as config_file
from experiments.attention import actqkv, memory_readings
from experiments.attention.block_recall import RANKINGS, covered_by_budgets, measured, ranked
from rml import models
from rml.attention.block_lookup import MemorySettings
from rml.errors import UserError

SMALL = {
    "memory.sinks": 2, "memory.window": 8, "memory.tokens": 8, "memory.top": 2, "memory.chunk": 8,
    "tries.activation": (4,), "tries.mean": (4,), "tries.window": (2,), "recall.length": 64,
    "recall.documents": 2, "recall.measured_layers": (0, 1), "recall.least": 1,
    "needles.lengths": (64,), "needles.depths": (0.2, 0.8), "budgets": (), "timing.length": 40,
    "timing.repeats": 1,
}  # fmt: skip


class Words:
    """A tokenizer of words, each a number below 32."""

    truncation = padding = None

    def no_padding(self):
        """Nothing to do."""

    no_truncation = no_padding

    def enable_truncation(self, length):
        """Texts are short."""

    def encode_batch_fast(self, texts, **_):
        found = [re.findall(r"\w+|\.", text) for text in texts]
        return [SimpleNamespace(ids=[sum(map(ord, w)) % 32 for w in words]) for words in found]

    def decode(self, tokens):
        return f"word{tokens[0]} "


@pytest.fixture(scope="module")
def model():
    module = models.Llama(
        vocabulary=32, width=16, depth=2, heads=4, kv_heads=2, head_width=8, mlp=16, tied=True
    )
    made = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), int))
    # Larger projections give attention that differs between keys.
    variables = jax.tree.map(lambda x: 12 * x if x.ndim > 2 else x, nn.meta.unbox(made))
    return SimpleNamespace(module=module, variables=variables, tokenizer=Words())


def texts(*_):
    return np.random.default_rng(0).integers(0, 32, (4, 64)).astype(np.int32)


@pytest.mark.optimised
@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(model, measure, monkeypatch, tmp_path):
    monkeypatch.setattr(actqkv.pretrained, "load", lambda name: model)
    monkeypatch.setattr(actqkv, "speeches", texts)
    monkeypatch.setattr(memory_readings, "FRUITS", ("apple", "cherry", "pear"))
    # Other probes are compiled in tests of their own.
    probes = {"activation": None, "mean": None, "last": "mean", "reversed": "mean"}
    monkeypatch.setattr(memory_readings, "PROBES", probes)
    metrics, holds = measure("configs/attention/actqkv.py", SMALL)
    assert len(holds) == len(actqkv.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert {c.null for c in actqkv.CLAIMS} <= set(metrics)
    for ranking in RANKINGS:
        assert metrics[f"recall_{ranking}"] <= metrics["recall_exact"] <= 1
        assert metrics[f"covered_{ranking}"] <= metrics["covered_exact"] <= 1
    assert metrics["time_over_mean"] > 0
    assert metrics["bytes_window"] < metrics["bytes_activation"] < metrics["bytes_all_keys"]
    assert 0.25 < metrics["bytes_share"] < 1 < metrics["bytes_share_all_blocks"]
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(actqkv.CAPTIONS)


def test_windows_see_as_many_keys_as_memories():
    config = config_file.get_config()
    config.memory.update(sinks=4, window=8, chunk=6)
    config.needles.lengths = (60,)
    seen = []
    for start in range(18, 60, 6):  # chunks whose memory has begun
        whole = (start - 8 - 4) // 5
        seen += [place + 1 - 4 - 5 * whole for place in range(start, start + 6)]
    assert memory_readings.near(config, 5) == round(np.mean(seen))


def test_rankings_of_planted_blocks():
    """Queries look for one key that stands in the third block and, later, at the end."""
    rng = np.random.default_rng(1)
    settings = MemorySettings(block=4, blocks=2, sinks=2, window=8, top=1)
    key = 0.3 * rng.normal(size=(1, 64, 4))
    target = np.array([0, 12.0, 0, 0])  # pairs turn together: the second hardly does
    query = np.tile(target, (2, 64, 1)) + 0.3 * rng.normal(size=(2, 64, 4))
    key[0, [12, 61]] = target
    found = jax.tree.map(np.asarray, ranked(
        jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32), jax.random.key(0),
        settings=settings, chunk=8, theta=1e16, temperatures=(1.0, 0.05),
    ))  # fmt: skip
    np.testing.assert_array_equal(found.whole, [0, 0, 1, 3, 5, 7, 9, 11])
    assert (found.mass[3:7].argmax(1) == 2).all()
    assert (found.mass[3:7, 2] > 0.9).all()
    for row in range(6):
        assert (found.scores[3:7, row].argmax(1) == 2).all(), RANKINGS[row]
    np.testing.assert_allclose(found.mass.sum(1) + found.near, 1, rtol=1e-5)
    values = measured(found, (0.2, 1.0), 0.9)
    assert values.recall.shape == (4, len(RANKINGS), 2)
    np.testing.assert_array_equal(values.recall[:2, RANKINGS.index("mean"), 0], 1)
    np.testing.assert_array_equal(values.recall[:2, RANKINGS.index("recent"), 0], 0)
    np.testing.assert_allclose(values.covered[..., 1], 1, rtol=1e-5)
    covered, budgets = covered_by_budgets([found, found], count=2, least=1, temperature=1)
    np.testing.assert_array_equal(budgets, 2)  # equal layers
    best = [found.mass[w][np.argsort(-found.scores[w, 0])[:2]].sum() for w in range(3, 8)]
    np.testing.assert_allclose(covered, best / found.mass[3:].sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tries": {"window": (4,)}}, "expected equally many"),
        ({"budgets": (72,)}, r"tries.activation has blocks of 16, expected divisors"),
        ({"recall": {"length": 3000}}, "expected a multiple of memory.chunk=128"),
        ({"recall": {"at": 0.3}}, "recall.at is 0.3, expected one of"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        actqkv.check(config)
