"""SupCon on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/supcon_mnist5k.py --workdir=runs/supcon

One to two and a half minutes on 2 CPU cores. Result: results/supcon. Steps were chosen on
`train[75%:]`.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.supcon",
        loss=dict(temperature=0.1, form="out"),
        train=parts.training(steps=500, eval_every=250),
    )
