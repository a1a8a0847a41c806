"""SigLIP on about 10,000 line icons of 454 concepts and their names.

python -m experiments.run --config=configs/contrastive/siglip_icons.py --workdir=runs/siglip

Two minutes of one CPU core. Result: results/siglip.
"""

import math

from ml_collections import ConfigDict

from configs.contrastive.parts import towers


def get_config() -> ConfigDict:
    return towers("siglip", log_scale=math.log(10), bias=-10.0)
