"""Hydra on scikit-learn's 8x8 digits, for a first look and for tests.

python -m experiments.run --config=configs/hydra/hydra_digits.py --workdir=runs/hydra_digits

Result: results/hydra, 41 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import hydra


def get_config() -> ConfigDict:
    return parts.pretraining(
        "hydra.hydra",
        data=parts.images("digits", (8, 8, 1), train="train", test="test", classes=10),
        model=dict(name="convnet", features=128, kernel_sizes=(3, 3), strides=(1, 2)),
        head=dict(hidden=256, features=256),
        train=parts.training(steps=400, eval_every=100, checkpoint_every=200),
        **hydra(transfer="mnist5k"),
    )
