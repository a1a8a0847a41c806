"""DINO's loss with two crops on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/dino_fashion.py --workdir=runs/dino_fashion

Result: results/dino, 4 min 49 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import DINO, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **DINO, **fashion())
