"""VICReg on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/vicreg_mnist5k.py \
    --workdir=runs/vicreg_mnist5k

Not run in full here. `make claims ONLY=vicreg` measures it into results/vicreg.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import VICREG


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **VICREG)
