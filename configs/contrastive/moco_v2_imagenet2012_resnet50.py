"""MoCo v2 on ImageNet with a ResNet-50: the published recipe of 200 epochs.

python -m experiments.run --config=configs/contrastive/moco_v2_imagenet2012_resnet50.py \
    --workdir=runs/moco_v2_imagenet2012_resnet50

Not run here, so there is no result to expect from this code. Batch 256, SGD at 0.03 with cosine
decay and no warm-up, weight decay 1e-4, 65,536 keys, momentum 0.999 (arXiv:1911.05722, Sections 3.3
and 4.1), temperature 0.2, MLP head, stronger augmentation (arXiv:2003.04297, Section 3). Eight
groups of 32 images stand for its eight devices. Images stay in [0, 1], not standardised.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.imagenet(
        "contrastive.moco_v2",
        batch_size=256,
        epochs=200,
        name="sgd",
        rate=0.03,
        warmup_epochs=0,
        weight_decay=1e-4,
        augment=parts.crops(224, scale=(0.2, 1.0), blur=0.5),
        head=dict(hidden=2048, features=128, norm=False),
        loss=dict(temperature=0.2),
        queue=dict(size=65_536),
        momentum=dict(schedule="constant", start=0.999),
        batch_norm=dict(groups=8, key_statistics="shuffle"),
    )
