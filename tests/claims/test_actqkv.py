"""ActQKV's recipe on a small random model; `make claims` measures a trained one."""

import re
from types import SimpleNamespace

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
from tests.claims.drawn_models import drawn

SMALL = {
    "memory.sinks": 2, "memory.window": 8, "memory.tokens": 8, "memory.top": 2, "memory.chunk": 8,
    "tries.activation": (4,), "tries.mean": (4,), "tries.window": (2,), "recall.length": 64,
    "recall.documents": 2, "recall.measured_layers": (0, 1), "recall.least": 1,
    "needles.lengths": (64,), "needles.depths": (0.2, 0.8), "needles.texts": 2, "budgets": (16,),
    "timing.length": 40, "timing.repeats": 1,
}  # fmt: skip


class Words:
    """A tokenizer of words, each a number below 32."""

    truncation = padding = encode_special_tokens = None

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


class Given:
    """A module whose logits are the hidden states."""

    def apply(self, variables, x, method):
        return x


@pytest.fixture(scope="module")
def model():
    module = models.Llama(
        vocabulary=32, width=16, depth=2, heads=4, kv_heads=2, head_width=8, mlp=16, tied=True
    )
    return SimpleNamespace(module=module, variables=drawn(module), tokenizer=Words())


def texts(*_):
    return np.random.default_rng(0).integers(0, 32, (6, 64)).astype(np.int32)


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


@pytest.mark.slow
def test_rankings_of_planted_blocks():
    """Each of two heads looks for one key, in the third and in the second block, and at the end."""
    rng = np.random.default_rng(1)
    settings = MemorySettings(block=4, blocks=2, sinks=2, window=8, top=1)
    key = 0.3 * rng.normal(size=(2, 64, 4))
    targets = np.array([[0, 12.0, 0, 0], [0, 0, 0, 12.0]])  # of a pair that hardly turns
    query = targets[:, None] + 0.3 * rng.normal(size=(2, 64, 4))
    key[0, [12, 61]], key[1, [8, 61]] = targets
    found = jax.tree.map(np.asarray, ranked(
        jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32), jax.random.key(0),
        settings=settings, chunk=8, theta=1e16, temperatures=(1.0, 0.05),
    ))  # fmt: skip
    np.testing.assert_array_equal(found.whole, [0, 0, 1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(found.mass[3:7].argmax(2), [[2, 1]] * 4)
    assert (found.mass[3:7].max(2) > 0.9).all()
    for row, name in enumerate(RANKINGS):
        own = found.scores[3:7, row]
        if name in ("activation_heads", "mean_heads", "exact"):
            np.testing.assert_array_equal(own.argmax(2), [[2, 1]] * 4, err_msg=name)
        elif name not in ("cosine", "mean_cosine", "random", "recent"):
            best = np.sort(np.argsort(-own, axis=2)[..., :2])
            np.testing.assert_array_equal(best, np.broadcast_to([1, 2], best.shape), err_msg=name)
    np.testing.assert_allclose(found.mass.sum(2) + found.near, 1, rtol=1e-5)
    own = dict(zip(RANKINGS, found.scores[6, :, 0, :9].astype(np.float64), strict=True))
    # Products over cosines are norms: of blocks, times one number of each probe.
    norms = own["mean"] / own["mean_cosine"] * own["cosine"] / own["activation"]
    np.testing.assert_allclose(norms, norms.mean(), rtol=1e-3)
    assert np.std(own["mean"] / own["activation"]) > 0.01
    p = np.exp(own["cosine"]) / np.exp(own["cosine"]).sum()
    np.testing.assert_allclose(found.information[6, 2], -(p * np.log(p)).sum() / np.log(9), 1e-5)
    values = measured(found, (0.2, 1.0), 0.9)
    assert values.recall.shape == (4, len(RANKINGS), 2)
    by = {name: values.recall[:2, row, 0] for row, name in enumerate(RANKINGS)}  # one block read
    np.testing.assert_array_equal(by["mean"], 0.5)  # that of one of the heads
    np.testing.assert_array_equal(by["mean_heads"], 1)
    np.testing.assert_array_equal(by["recent"], 0)
    np.testing.assert_allclose(values.covered[..., 1], 1, rtol=1e-5)
    covered, budgets = covered_by_budgets([found, found], count=2, least=1, way=1)
    np.testing.assert_array_equal(budgets, 2)  # equal layers
    best = [found.mass[w][:, np.argsort(-found.scores[w, 0, 0])[:2]].sum(1) for w in range(3, 8)]
    truth = (np.array(best) / found.mass[3:].sum(2)).mean(1)
    np.testing.assert_allclose(covered, truth, rtol=1e-5)


def test_needles_and_questions_are_not_counted_as_text(monkeypatch):
    monkeypatch.setattr(memory_readings, "FRUITS", ("apple", "cherry", "pear"))
    config = config_file.get_config()
    config.needles.depths = (0.2, 0.8)
    asked = memory_readings.prompts(config, Words(), texts()[:3], 90)
    added = (memory_readings.QUESTION, memory_readings.NEEDLE.format("pear"))
    number = 90 - sum(len(own.ids) for own in Words().encode_batch_fast(added))
    for row, text in zip(range(3), texts(), strict=False):
        np.testing.assert_array_equal(asked.tokens[row][asked.document[row]], text[:number])
    places = asked.document.argmin(1)  # of needles, at depths in turn
    assert places[1] > max(places[0], places[2])
    logits = np.random.default_rng(2).normal(size=(3, 90, 32)).astype(np.float32)
    found = memory_readings._nats(None, logits, asked.tokens, asked.document, module=Given())
    for own, scores, text, counts in zip(found, logits, *asked[::3], strict=True):
        nats = [np.log(np.exp(scores[i - 1]).sum()) - scores[i - 1, text[i]] for i in range(1, 90)]
        assert own == pytest.approx(np.array(nats)[counts[1:]].mean(), rel=1e-5)


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
