"""SupCon on ImageNet with a ResNet-50: the published recipe of 350 epochs.

python -m experiments.run --config=configs/contrastive/supcon_imagenet2012_resnet50.py \
    --workdir=runs/supcon_imagenet2012_resnet50

Not run here, so there is no result to expect from this code. Batch 6,144, LARS at 0.4 · batch / 256
with 12 epochs of warm-up and cosine decay, weight decay 1e-3, temperature 0.1 (the authors' script
`supcon_imagenet_resnet50.sh`); head of 2,048 to 128 (Section 3.1). Two differences: the paper
augments with AutoAugment, this config as SimCLR does; and the encoder's features are not normalised
before the head.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.imagenet(
        "contrastive.supcon",
        batch_size=6144,
        epochs=350,
        rate=0.4,
        warmup_epochs=12,
        weight_decay=1e-3,
        head=dict(hidden=2048, features=128, norm=False),
        loss=dict(temperature=0.1, form="out"),
    )
