"""SupCon's claims in quick form: fewer images and steps; `make claims` measures them in full."""

import pytest

QUICK = {
    "data.train": "train[:10%]", "data.test": "test[:50%]", "train.steps": 80,
    "train.batch_size": 64, "train.eval_every": 0, "train.checkpoint_every": 0,
    "model.widths": (16, 32),
}  # fmt: skip


@pytest.mark.usefixtures("optimised_steps")
@pytest.mark.slow
def test_labels_separate_the_classes(measure):
    metrics, holds = measure("configs/contrastive/supcon_mnist5k.py", QUICK)
    assert all(holds.values()), metrics
    assert metrics["rankme"] > 10, metrics
