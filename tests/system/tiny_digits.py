"""SimCLR by a small MLP on 8x8 digits: what tests kill and continue.

python -m experiments.run --config=tests/system/tiny_digits.py --workdir=runs/tiny_digits

Some seconds on one core; it learns little.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.simclr",
        data=parts.images("digits", (8, 8, 1)),
        augment=parts.small_warps(),
        model=dict(name="mlp", hidden=(32,), features=16, norm="batch", activation="relu"),
        head=dict(hidden=16, features=8),
        optimizer=parts.optimizer(learning_rate=2e-3, warmup_steps=4, ema_decay=0.9),
        train=parts.training(
            steps=100, batch_size=32, log_every=1, eval_every=20, checkpoint_every=5
        ),
    )
