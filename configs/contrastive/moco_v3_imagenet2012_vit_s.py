"""MoCo v3 on ImageNet with a ViT-S/16: the published recipe of 300 epochs.

python -m experiments.run --config=configs/contrastive/moco_v3_imagenet2012_vit_s.py \
    --workdir=runs/moco_v3_imagenet2012_vit_s

Not run here, so there is no result to expect from this code. Batch 4,096, AdamW at 1.5e-4 · batch /
256 with 40 epochs of warm-up and cosine decay, weight decay 0.1, temperature 0.2, momentum 0.99
rising to 1, heads of 4,096 to 256 with BatchNorm, twelve attention heads, frozen patch projection
(arXiv:2104.02057, Sections 4.2, 5). The two views' augmentations are BYOL's; crops and jitter are
those of the authors' code for ViTs. Images stay in [0, 1], not standardised.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    jitter = (0.4, 0.4, 0.2, 0.1)
    return parts.imagenet(
        "contrastive.moco_v3",
        batch_size=4096,
        epochs=300,
        name="adamw",
        rate=1.5e-4,
        warmup_epochs=40,
        weight_decay=0.1,
        augment=parts.crops(224, jitter=jitter, blur=1.0),
        augment_second=parts.crops(224, jitter=jitter, blur=0.1, solarize=0.2),
        model=parts.vit("vit_s", heads=12),
        head=dict(hidden=4096, features=256, layers=3, norm=True, last_norm=True),
        predictor=dict(hidden=4096, features=256, layers=2, norm=True, last_norm=True),
        loss=dict(temperature=0.2),
        momentum=dict(schedule="cosine", start=0.99),
    )
