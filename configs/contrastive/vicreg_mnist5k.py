"""VICReg on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/vicreg_mnist5k.py \
    --workdir=runs/vicreg_mnist5k

Result: results/vicreg, 2 min 58 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import VICREG


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **VICREG)
