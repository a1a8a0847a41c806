"""Hydra's claims in quick form, on small digits; `make claims` measures them in full."""

import numpy as np
import pytest

from experiments.common.evaluators import ImageEvaluator
from experiments.hydra import ablation
from rml.hydra import GatedEncoder

QUICK = {
    "train.steps": 150, "train.batch_size": 128, "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "transfer.name": "digits",  # itself: the other set costs more than the training
}  # fmt: skip


SMALL = QUICK | {
    "data.name": "digits", "data.image_shape": (8, 8, 1), "data.train": "train[:200]",
    "data.test": "test[:50]", "data.classes": 10, "augment.order": ("random_erase",),
    "model": dict(name="mlp", hidden=(12,), features=12), "head.features": 8, "head.hidden": 12,
    "train.steps": 4, "train.batch_size": 32, "optimizer.warmup_steps": 1,
    "transfer.train": "train[:200]", "transfer.test": "test[:50]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def never_all_pairs_at_once(monkeypatch):
    """No gates of all pairs, which many classes have no memory for."""
    monkeypatch.setattr(
        GatedEncoder, "pair_gates", lambda *_: pytest.fail("gates of all pairs are made at once")
    )


@pytest.mark.usefixtures("optimised_steps")
@pytest.mark.slow
def test_hydra_learns_features_and_binary_gates(measure, tmp_path):
    metrics, _ = measure("configs/hydra/hydra_digits.py", QUICK)
    assert metrics["linear_probe_over_untrained"] > 0, metrics
    assert metrics["knn"] > 0.97, metrics
    assert metrics["gate_binariness"] > 0.5, metrics
    assert 0.2 < metrics["gate_sparsity"] < 0.98, metrics
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert {"dendrogram.png", "relations.png", "gates.png", "gate_values.png"} <= figures


@pytest.mark.slow
def test_choices_are_compared_with_the_base_and_that_with_itself(measure, monkeypatch):
    # Probes, and what is odd in the data, are looked at elsewhere.
    monkeypatch.setattr(ImageEvaluator, "probe", ImageEvaluator.knn)
    monkeypatch.setattr(ImageEvaluator, "check", lambda evaluator: None)
    seeds, train = {}, ablation.train_on_mesh

    def noted(config, run, *args):
        seeds[run.path.name] = config.seed
        return train(config, run, *args)

    monkeypatch.setattr(ablation, "train_on_mesh", noted)
    variants = {
        "uniform": "pairs.sampling=uniform", "identical": "pairs.sampling=identical",
        "open": "", "paper_filter": "",
    }  # fmt: skip
    metrics, _ = measure("configs/hydra/ablation_glyphs.py", SMALL | {"variants": variants})
    for claim in ablation.CLAIMS:
        assert np.isfinite([metrics[claim.metric], metrics[claim.null]]).all()
    assert metrics["rankme_over_open"] == 1.0 != metrics["rankme_over_again"]
    assert metrics["rankme_base"] / metrics["rankme_again"] == metrics["rankme_over_again"]
    assert metrics["knn_base"] - metrics["knn_again"] == metrics["knn_over_again"]
    assert seeds.pop("again") >= 1000
    assert set(seeds.values()) == {0}
