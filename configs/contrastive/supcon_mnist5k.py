"""SupCon on 5,000 handwritten digits."""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.supcon"
    config.loss = dict(temperature=0.1, form="out")
    return config
