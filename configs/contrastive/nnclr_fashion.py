"""NNCLR on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/nnclr_fashion.py --workdir=runs/nnclr_fashion
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import NNCLR, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **NNCLR, **fashion())
