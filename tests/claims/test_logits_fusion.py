"""The recipe of logits fusion on tiny models; `make claims` measures ones that can read."""

import numpy as np
import pytest

from configs.merging import logits_fusion as config_file
from experiments.merging import logits_fusion
from experiments.merging.logits_models import data
from experiments.merging.logits_readings import Reading
from rml.errors import UserError

SMALL = {
    "seed": 1, "text.length": 12, "text.vocabulary": 300, "text.windows": 3,
    "data.domains": ("even", "odd"), "large.width": 16, "large.depth": 1, "large.heads": 2,
    "large.mlp": 16, "small.width": 8, "small.depth": 1, "small.heads": 2, "small.mlp": 8,
    "train.batch_size": 4, "train.steps": 4, "optimizer.learning_rate": 0.1,
    "train.log_every": 1, "train.eval_every": 4, "train.checkpoint_every": 4,
    "optimizer.warmup_steps": 1, "tuning.steps": 3,
    "tuning.warmup_steps": 1, "tuning.rates": (0.1,), "tuning.rank": 2, "alpha.points": 21,
    "alpha.scales": (0.5,),
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
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert set(logits_fusion.CAPTIONS) <= figures


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
    metrics = logits_fusion.of_one(config, validation, test, whole)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.domains": ("sotu",)}, "expected two collections or more"),
        ({"alpha.points": 4}, "give weights without 1"),
    ],
)
def test_wrong_options_are_named(change, message):
    config = config_file.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        logits_fusion.check(config)
