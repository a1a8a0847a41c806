"""SwAV with two crops on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/swav_fashion.py --workdir=runs/swav_fashion

Result: results/swav, 3 min 20 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import SWAV, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **SWAV, **fashion())
