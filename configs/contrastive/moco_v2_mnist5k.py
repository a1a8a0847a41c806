"""MoCo v2 on 5,000 handwritten digits."""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.moco_v2"
    config.queue = dict(size=2048)
    config.momentum = dict(schedule="constant", start=0.99)
    config.batch_norm = dict(groups=8, key_statistics="shuffle")
    return config
