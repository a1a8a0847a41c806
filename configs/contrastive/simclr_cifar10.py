"""SimCLR on CIFAR-10 with a ResNet-18.

python -m experiments.run --config=configs/contrastive/simclr_cifar10.py \
    --workdir=runs/simclr_cifar10

Not run here, so there is no result to expect from this code. Network, batch and length are lighter
than the paper's.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.cifar("contrastive.simclr", batch_size=512, epochs=500)
