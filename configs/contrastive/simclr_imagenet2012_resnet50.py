"""SimCLR on ImageNet with a ResNet-50.

python -m experiments.run --config=configs/contrastive/simclr_imagenet2012_resnet50.py \
    --workdir=runs/simclr_imagenet2012_resnet50

Not run here, so there is no result to expect from this code. Batch 4,096, LARS at 0.3 · batch / 256
with 10 epochs of warm-up, weight decay 1e-6, temperature 0.1. 100 epochs.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.imagenet(
        "contrastive.simclr", batch_size=4096, epochs=100, rate=0.3, warmup_epochs=10
    )
