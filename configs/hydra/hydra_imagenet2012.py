"""Hydra on ImageNet with a ResNet-50: 500,500 pairs of classes, partners from the batch.

Batch 4,096, LARS, projector 2048-256, temperature 0.1 and partners by permuting the batch's labels
are those of the authors' code.

python -m experiments.run --config=configs/hydra/hydra_imagenet2012.py \
    --workdir=runs/hydra_imagenet2012
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_imagenet2012_resnet50
from configs.hydra import hydra_mnist5k


def get_config() -> ConfigDict:
    config, ours = simclr_imagenet2012_resnet50.get_config(), hydra_mnist5k.get_config()
    config.experiment = "hydra.hydra"
    config.data.classes = 1000
    config.transfer = dict(name="cifar100", train="train", test="test")
    config.head.features = 256
    config.filter = ours.filter.copy_and_resolve_references()
    config.filter.update(dict(embed=512, hidden=1024))
    config.pairs = dict(sampling="batch")
    config.loss = ours.loss.copy_and_resolve_references()
    return config
