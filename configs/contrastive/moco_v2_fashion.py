"""MoCo v2 on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/moco_v2_fashion.py --workdir=runs/moco_v2_f

Not run in full here. `make claims ONLY=moco_v2` measures it into results/moco_v2.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import MOCO_V2, fashion


def get_config() -> ConfigDict:
    train = parts.training(steps=800, eval_every=200)
    return parts.pretraining("contrastive.moco_v2", train=train, **MOCO_V2, **fashion())
