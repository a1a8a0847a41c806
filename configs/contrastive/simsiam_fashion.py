"""SimSiam on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/simsiam_fashion.py \
    --workdir=runs/simsiam_fashion

Result: results/simsiam, 3 min 44 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import SIMSIAM, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **SIMSIAM, **fashion())
