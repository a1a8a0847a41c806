"""CLIP on about 10,000 line icons of 454 concepts and their names.

python -m experiments.run --config=configs/contrastive/clip_icons.py --workdir=runs/clip

Result: results/clip, 1 min 41 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

import math

from ml_collections import ConfigDict

from configs.contrastive.parts import towers


def get_config() -> ConfigDict:
    return towers("clip", log_scale=math.log(1 / 0.07), bias=0.0)
