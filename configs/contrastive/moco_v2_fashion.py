"""MoCo v2 on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/moco_v2_fashion.py --workdir=runs/moco_v2_f

Result: results/moco_v2, 3 min 47 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import MOCO_V2, fashion


def get_config() -> ConfigDict:
    train = parts.training(steps=800, eval_every=200)
    return parts.pretraining("contrastive.moco_v2", train=train, **MOCO_V2, **fashion())
