"""The trial of warps, small, by what all trials promise."""

from tests.trials.conformance import conform

SMALL = {
    "seeds": 2, "tuning_seeds": 0, "train.steps": 4, "train.checkpoint_every": 0,
    "optimizer.warmup_steps": 1,
}  # fmt: skip


def test_conforms(tmp_path):
    conform("configs/contrastive/warps_digits.py", SMALL, tmp_path)
