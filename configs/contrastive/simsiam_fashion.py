"""SimSiam on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/simsiam_fashion.py \
    --workdir=runs/simsiam_fashion

Not run in full here. `make claims ONLY=simsiam` measures it into results/simsiam.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import SIMSIAM, fashion


def get_config() -> ConfigDict:
    return parts.pretraining("contrastive.views", **SIMSIAM, **fashion())
