"""NNCLR on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/nnclr_fashion.py --workdir=runs/nnclr_fashion

Result: results/nnclr, 4 min 36 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import NNCLR, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **NNCLR, **fashion())
