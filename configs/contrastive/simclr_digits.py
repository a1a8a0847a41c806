"""SimCLR on scikit-learn's 8x8 digits: seconds, for a first look and for tests.

python -m experiments.run --config=configs/contrastive/simclr_digits.py --workdir=runs/simclr_digits

Result: results/simclr, 24 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.simclr",
        data=parts.images("digits", (8, 8, 1)),
        augment=parts.small_warps(),
        model=parts.small_convnet(),
        optimizer=parts.optimizer(learning_rate=2e-3, warmup_steps=100),
        train=parts.training(steps=600, eval_every=200, checkpoint_every=200),
    )
