"""Hydra on CIFAR-100 with a ResNet-18: 5,050 pairs of classes, batches of drawn pairs.

python -m experiments.run --config=configs/hydra/hydra_cifar100.py --workdir=runs/hydra_cifar100

Not run here.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import hydra


def get_config() -> ConfigDict:
    return parts.cifar(
        "hydra.hydra",
        batch_size=512,
        epochs=500,
        data=parts.images("cifar100", (32, 32, 3), train="train", test="test", classes=100),
        head=dict(features=256, norm=True),
        **hydra("drawn", embed=512, hidden=1024, transfer="cifar10"),
    )
