"""MoCo v3 on 10,000 articles of clothing, with a ConvNet.

python -m experiments.run --config=configs/contrastive/moco_v3_fashion.py --workdir=runs/moco_v3_f

Result: results/moco_v3, 2 min 40 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import MOCO_V3, fashion


def get_config() -> ConfigDict:
    shown = fashion()
    return parts.pretraining(
        "contrastive.moco_v3",
        augment_second=shown["augment"],
        train=parts.training(steps=600, eval_every=200),
        **MOCO_V3,
        **shown,
    )
