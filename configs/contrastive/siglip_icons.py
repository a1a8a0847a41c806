"""SigLIP on about 10,000 line icons of 454 concepts and their names.

python -m experiments.run --config=configs/contrastive/siglip_icons.py --workdir=runs/siglip

Result: results/siglip, 100 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

import math

from ml_collections import ConfigDict

from configs.contrastive.parts import towers


def get_config() -> ConfigDict:
    return towers("siglip", log_scale=math.log(10), bias=-10.0)
