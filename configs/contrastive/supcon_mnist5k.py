"""SupCon on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/supcon_mnist5k.py --workdir=runs/supcon

Steps were chosen on `train[75%:]`.

Result: results/supcon, 70 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.pretraining(
        "contrastive.supcon",
        loss=dict(temperature=0.1, form="out"),
        train=parts.training(steps=500, eval_every=250),
    )
