"""Warped digits beside digits as they are, ten seeds of four arms.

python -m experiments.run --config=configs/contrastive/warps_digits.py --workdir=runs/warps
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.warps", seeds=10, tuning_seeds=2, classes=10,
        data=parts.images("digits", (8, 8, 1), train="train[:20%]", validation="train[50%:]",
                          test="test"),
        augment=parts.small_warps() | {"order": ()}, model=parts.small_convnet(), head=None,
        loss=dict(smoothing=0.0),
        optimizer=parts.optimizer(learning_rate=3e-3, warmup_steps=20),
        train=parts.training(steps=200, batch_size=64, eval_every=0, checkpoint_every=200),
    )  # fmt: skip
