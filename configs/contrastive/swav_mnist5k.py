"""SwAV with two crops on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/swav_mnist5k.py --workdir=runs/swav_mnist5k

Result: results/swav, 3 min 50 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import SWAV


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **SWAV)
