"""SupCon on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/supcon_fashion.py \
    --workdir=runs/supcon_fashion

Two minutes on one CPU core. Result: results/supcon.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import fashion


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.supcon", loss=dict(temperature=0.1, form="out"), **fashion()
    )
