"""SupCon on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/supcon_fashion.py \
    --workdir=runs/supcon_fashion

Result: results/supcon, 1 min 59 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import fashion


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.supcon", loss=dict(temperature=0.1, form="out"), **fashion()
    )
