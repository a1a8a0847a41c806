"""Decoupled contrastive learning (DCLW) on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/dcl_mnist5k.py --workdir=runs/dcl_mnist5k

Result: results/dcl, 2 min 42 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import DCL


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", loss=DCL)
