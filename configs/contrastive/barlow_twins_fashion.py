"""Barlow Twins on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/barlow_twins_fashion.py \
    --workdir=runs/barlow_twins_fashion

Result: results/barlow_twins, 2 min 23 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BARLOW_TWINS, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BARLOW_TWINS, **fashion())
