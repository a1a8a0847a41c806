"""SimCLR's claims in quick form, on fewer images and steps; `make claims` measures them in full."""

import pytest

QUICK = {
    "data.train": "train[:10%]", "data.test": "test[:50%]", "train.steps": 100,
    "train.batch_size": 64, "train.eval_every": 0, "train.checkpoint_every": 0,
    "model.widths": (16, 32),
}  # fmt: skip


@pytest.mark.usefixtures("optimised_steps")
@pytest.mark.slow
def test_a_probe_of_contrastive_features_beats_pixels_and_an_untrained_encoder(measure):
    metrics, holds = measure("configs/contrastive/simclr_mnist5k.py", QUICK)
    assert metrics["linear_probe_over_pixels"] >= 0.05, metrics
    assert holds["linear_probe_over_untrained", ">="], metrics
    assert metrics["knn"] > metrics["knn_untrained"], metrics
