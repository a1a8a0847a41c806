"""VICReg on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/vicreg_fashion.py \
    --workdir=runs/vicreg_fashion

Result: results/vicreg, 2 min 32 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import VICREG, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **VICREG, **fashion())
