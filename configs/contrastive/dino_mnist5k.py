"""DINO's loss with two crops on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/dino_mnist5k.py --workdir=runs/dino_mnist5k

Result: results/dino, 3 min 43 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import DINO


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **DINO)
