"""DINO's loss with two crops on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/dino_fashion.py --workdir=runs/dino_fashion
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import DINO, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **DINO, **fashion())
