"""NNCLR on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/nnclr_mnist5k.py --workdir=runs/nnclr_mnist5k

Result: results/nnclr, 3 min 10 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import NNCLR


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **NNCLR)
