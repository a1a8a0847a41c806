"""Hydra on CIFAR-100 with a ResNet-18: 5,050 pairs of classes, batches of drawn pairs.

python -m experiments.run --config=configs/hydra/hydra_cifar100.py --workdir=runs/hydra_cifar100
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_cifar10
from configs.hydra import hydra_mnist5k


def get_config() -> ConfigDict:
    config, ours = simclr_cifar10.get_config(), hydra_mnist5k.get_config()
    config.experiment = "hydra.hydra"
    config.data.name = "cifar100"
    config.data.classes = 100
    config.transfer = dict(name="cifar10", train="train", test="test")
    config.head.features = 256
    config.filter = ours.filter.copy_and_resolve_references()
    config.filter.update(dict(embed=512, hidden=1024))
    config.pairs = dict(sampling="drawn")
    config.loss = ours.loss.copy_and_resolve_references()
    return config
