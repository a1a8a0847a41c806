"""MoCo v3 on CIFAR-10 with a ResNet-18.

python -m experiments.run --config=configs/contrastive/moco_v3_cifar10.py \
    --workdir=runs/moco_v3_cifar10

Not run here, and the paper has no such recipe: this is its ResNet recipe (heads of two layers,
4,096 to 256, LARS with weight decay 1e-6, 10 epochs of warm-up, momentum 0.99 rising to 1) with the
augmentation, stem, batch and length of this repository's SimCLR on CIFAR-10, and temperature 0.2.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_cifar10


def get_config() -> ConfigDict:
    config = simclr_cifar10.get_config()
    config.experiment = "contrastive.moco_v3"
    config.augment_second = config.augment.copy_and_resolve_references()
    config.augment_second.order = (*config.augment.order, "solarize")
    config.augment_second.solarize = dict(p=0.2)
    config.head = dict(hidden=4096, features=256, layers=2, norm=True, last_norm=True)
    config.predictor = dict(hidden=4096, features=256, layers=2, norm=True)
    config.loss = dict(temperature=0.2)
    config.momentum = dict(schedule="cosine", start=0.99)
    return config
