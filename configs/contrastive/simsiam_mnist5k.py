"""SimSiam on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/simsiam_mnist5k.py \
    --workdir=runs/simsiam_mnist5k

Result: results/simsiam, 2 min 54 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import SIMSIAM


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **SIMSIAM)
