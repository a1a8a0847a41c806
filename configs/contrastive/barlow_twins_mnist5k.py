"""Barlow Twins on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/barlow_twins_mnist5k.py \
    --workdir=runs/barlow_twins_mnist5k

Not run in full here. `make claims ONLY=barlow_twins` measures it into results/barlow_twins.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import BARLOW_TWINS


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **BARLOW_TWINS)
