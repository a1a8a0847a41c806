"""Hydra's claims in quick form, on small digits; `make claims` measures them in full."""

import pytest

QUICK = {
    "train.steps": 150, "train.batch_size": 128, "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "transfer.name": "digits",  # itself: the other set costs more than the training
}  # fmt: skip


@pytest.mark.optimised
@pytest.mark.slow
def test_hydra_learns_features_and_binary_gates(measure, tmp_path):
    metrics, _ = measure("configs/hydra/hydra_digits.py", QUICK)
    assert metrics["linear_probe_over_untrained"] > 0, metrics
    assert metrics["knn"] > 0.97, metrics
    assert metrics["gate_binariness"] > 0.5, metrics
    assert 0.2 < metrics["gate_sparsity"] < 0.98, metrics
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert {"dendrogram.png", "relations.png", "gates.png", "gate_values.png"} <= figures
