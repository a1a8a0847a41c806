"""Hydra on ImageNet with a ResNet-50: 500,500 pairs of classes, partners from the batch.

Batch 4,096, LARS, projector 2048-256, temperature 0.1 and partners by permuting the batch's labels
are those of the authors' code.

python -m experiments.run --config=configs/hydra/hydra_imagenet2012.py \
    --workdir=runs/hydra_imagenet2012

Not run here.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import hydra


def get_config() -> ConfigDict:
    config = parts.imagenet(
        "hydra.hydra",
        batch_size=4096,
        epochs=100,
        rate=0.3,
        warmup_epochs=10,
        head=dict(hidden=2048, features=256, norm=True),
        **hydra("batch", embed=512, hidden=1024, transfer="cifar100"),
    )
    config.data.classes = 1000
    return config
