"""Barlow Twins on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/barlow_twins_mnist5k.py \
    --workdir=runs/barlow_twins_mnist5k

Result: results/barlow_twins, 2 min 54 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BARLOW_TWINS


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BARLOW_TWINS)
