"""BYOL on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/byol_mnist5k.py --workdir=runs/byol_mnist5k

Result: results/byol, 3 min 51 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BYOL


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BYOL)
