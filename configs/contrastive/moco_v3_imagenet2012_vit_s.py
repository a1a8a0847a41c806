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

from configs.contrastive import simclr_imagenet2012_resnet50


def get_config() -> ConfigDict:
    batch_size, epochs, images = 4096, 300, 1_281_167
    config = simclr_imagenet2012_resnet50.get_config()
    config.experiment = "contrastive.moco_v3"
    config.augment.random_resized_crop.scale = (0.08, 1.0)
    config.augment.color_jitter = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)
    config.augment.gaussian_blur.p = 1.0
    config.augment_second = config.augment.copy_and_resolve_references()
    config.augment_second.order = (*config.augment.order, "solarize")
    config.augment_second.gaussian_blur.p = 0.1
    config.augment_second.solarize = dict(p=0.2)
    config.model = dict(
        name="vit_s",
        heads=12,
        patch_size=16,
        positions="sincos2d",
        freeze_patches=True,
        remat=True,
        attention="xla",  # "fused" on TPUs: a kernel, compiled but not run here
    )
    config.head = dict(hidden=4096, features=256, layers=3, norm=True, last_norm=True)
    config.predictor = dict(hidden=4096, features=256, layers=2, norm=True, last_norm=True)
    config.loss = dict(temperature=0.2)
    config.momentum = dict(schedule="cosine", start=0.99)
    config.optimizer.update(
        dict(
            name="adamw",
            learning_rate=1.5e-4 * batch_size / 256,
            schedule="warmup_cosine",
            warmup_steps=40 * images // batch_size,
            weight_decay=0.1,
        )
    )
    config.train.update(dict(batch_size=batch_size, steps=epochs * images // batch_size))
    return config
