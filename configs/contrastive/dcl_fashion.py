"""Decoupled contrastive learning (DCLW) on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/dcl_fashion.py --workdir=runs/dcl_fashion

Result: results/dcl, 2 min 50 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import DCL, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", loss=DCL, **fashion())
