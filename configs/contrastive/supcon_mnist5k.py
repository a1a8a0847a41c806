"""SupCon on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/supcon_mnist5k.py --workdir=runs/supcon
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.supcon"
    config.loss = dict(temperature=0.1, form="out")
    config.optimizer.warmup_steps = 50
    config.train.update(dict(steps=500, eval_every=250))
    return config
