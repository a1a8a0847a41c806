"""MoCo v2 on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/moco_v2_mnist5k.py --workdir=runs/moco_v2
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.moco_v2"
    config.queue = dict(size=2048)
    config.momentum = dict(schedule="constant", start=0.99)
    config.batch_norm = dict(groups=8, key_statistics="shuffle")
    config.optimizer.warmup_steps = 50
    config.train.update(dict(steps=800, eval_every=200))
    return config
