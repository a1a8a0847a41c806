"""Alignment and uniformity on scikit-learn's 8x8 digits.

python -m experiments.run --config=configs/contrastive/align_uniform_digits.py \
    --workdir=runs/align_uniform

A minute and a half on 2 CPU cores beside other work.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_digits


def get_config() -> ConfigDict:
    config = simclr_digits.get_config()
    config.experiment = "contrastive.align_uniform"
    config.loss = dict(weight=1.0)
    return config
