"""MoCo v3 on CIFAR-10 with a ResNet-18.

python -m experiments.run --config=configs/contrastive/moco_v3_cifar10.py \
    --workdir=runs/moco_v3_cifar10

Not run here, and the paper has no such recipe: this is its ResNet recipe (heads of two layers,
4,096 to 256, LARS with weight decay 1e-6, 10 epochs of warm-up, momentum 0.99 rising to 1) with the
augmentation, stem, batch and length of this repository's SimCLR on CIFAR-10, and temperature 0.2.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.cifar(
        "contrastive.moco_v3",
        batch_size=512,
        epochs=500,
        augment_second=parts.crops(32, solarize=0.2),
        head=dict(hidden=4096, features=256, layers=2, norm=True, last_norm=True),
        predictor=dict(hidden=4096, features=256, layers=2, norm=True),
        loss=dict(temperature=0.2),
        momentum=dict(schedule="cosine", start=0.99),
    )
