"""SimCLR on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/simclr_fashion.py \
    --workdir=runs/simclr_fashion

Result: results/simclr, 10 min 0 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import fashion


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.views", loss=dict(name="nt_xent", temperature=0.2), **fashion()
    )
