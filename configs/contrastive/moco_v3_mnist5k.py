"""MoCo v3 on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/moco_v3_mnist5k.py --workdir=runs/moco_v3
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.moco_v3"
    config.augment_second = config.augment.copy_and_resolve_references()
    config.head = dict(hidden=256, features=64, norm=True, last_norm=True)
    config.predictor = dict(hidden=256, features=64, norm=True)
    config.momentum = dict(schedule="cosine", start=0.99)
    config.optimizer.warmup_steps = 50
    config.train.update(dict(steps=600, eval_every=200))
    return config
