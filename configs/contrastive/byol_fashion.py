"""BYOL on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/byol_fashion.py --workdir=runs/byol_fashion

Not run in full here. `make claims ONLY=byol` measures it into results/byol.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BYOL, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BYOL, **fashion())
