"""Alignment and uniformity on scikit-learn's 8x8 digits.

python -m experiments.run --config=configs/contrastive/align_uniform_digits.py \
    --workdir=runs/align_uniform

Needs nothing that is not installed.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_digits


def get_config() -> ConfigDict:
    config = simclr_digits.get_config()
    config.experiment = "contrastive.align_uniform"
    config.loss = dict(weight=1.0)
    return config
