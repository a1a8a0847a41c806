"""Barlow Twins on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/barlow_twins_fashion.py \
    --workdir=runs/barlow_twins_fashion

Three minutes of one CPU core. Result: results/barlow_twins.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BARLOW_TWINS, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BARLOW_TWINS, **fashion())
