"""BYOL on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/byol_fashion.py --workdir=runs/byol_fashion

Result: results/byol, 2 min 34 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BYOL, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BYOL, **fashion())
