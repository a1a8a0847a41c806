"""ProSparse's recipe on tiny models; `make claims` measures models that learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.sparsity import prosparse as config_file
from experiments.common import small_lm
from experiments.sparsity import prosparse, prosparse_training
from experiments.sparsity.prosparse_training import Reading
from rml.errors import UserError

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
        first = jax.jit(small_lm.language_model(config).init)
        made = first(jax.random.key(0), jnp.zeros((1, 2), int))
        return [nn.meta.unbox(made)["params"]]

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
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["sparsity_silu"] == 0.0
    assert 0.3 < metrics["sparsity_relu"] < 0.7
    assert metrics["sparsity_pro"] >= metrics["sparsity_progressive_4"] - 0.01
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(prosparse.CAPTIONS)
    lines = (tmp_path / "run" / "methods" / "relu" / "metrics.jsonl").read_text()
    assert "train/factor/1" in lines


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


def reading(nats, zeros, live=None):
    zeros = np.asarray(zeros, float)
    live = np.ones((len(zeros), 4)) if live is None else live
    return Reading(np.asarray(nats, float), zeros, live, np.ones(len(zeros)))


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
    for name in ("pro", "pro_random", "random", "chess", "top", "silu", "shifted"):
        found[name] = reading([2.5, 3.5], [0.9, 0.95])
    return config, found


def test_variants_are_compared_at_equal_sparsity(found):
    config, own = found
    # Between the second and the third constant one.
    wanted = reading([0, 0], [0.72, 0.72])
    nats = prosparse.at_sparsity(config, own, "constant", wanted)
    np.testing.assert_allclose(nats, [2.45, 3.45])
    beyond = prosparse.at_sparsity(config, own, "constant", reading([0, 0], [0.99]))
    np.testing.assert_allclose(beyond, own["constant_16"].nats)
    metrics = prosparse.summarised(config, own, "progressive_8")
    # At its sparsity of 0.84 the constant factor loses 0.2 nats more, of 2.9.
    assert metrics["gain_over_constant"] == pytest.approx(0.2 / 2.9)
    # At the line's 0.76 the sine has 2.8 nats, the line 2.85.
    assert metrics["gain_over_linear"] == pytest.approx(0.05 / 2.8)
    assert metrics["excess_pro"] == pytest.approx(0.5 / 2.5)
    assert metrics["first_layer_denser"] == pytest.approx(0.05)
    assert metrics["mlp_read"] == pytest.approx((1 + 2 * 0.075) / 3)
    assert metrics["mlp_read_relu"] == pytest.approx(2 / 3)


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
    r2, fit = prosparse.law(config, own)
    assert r2 > 0.9999
    np.testing.assert_allclose(fit, [1.5, 0.5, 3.2], rtol=0.02)
    assert prosparse.law(config, own, [3, 0, 4, 1, 2])[0] < 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peaks": (1.0, 2.0)}, "expected at least 5 that ascend"),
        ({"stages": {"start": 0.5}}, "expected to ascend from 0 to 1"),
        ({"thresholds": (0.01, 0.02)}, "thresholds is"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        prosparse.check(config)
