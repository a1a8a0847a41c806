"""SimCLR on ImageNet with a ViT-S/16, as trained for comparison in MoCo v3 (arXiv:2104.02057).

python -m experiments.run --config=configs/contrastive/simclr_imagenet2012_vit_s.py \
    --workdir=runs/simclr_imagenet2012_vit_s

Not run here. Batch 4,096 and 300 epochs; optimiser and head are those of MoCo v3's ViT-S.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_imagenet2012_resnet50


def get_config() -> ConfigDict:
    batch_size, epochs, images = 4096, 300, 1_281_167
    config = simclr_imagenet2012_resnet50.get_config()
    config.model = dict(
        name="vit_s",
        patch_size=16,
        positions="sincos2d",
        freeze_patches=True,
        remat=True,
        attention="xla",  # "fused" on TPUs: a kernel, compiled but not run here
    )
    config.head = dict(hidden=4096, features=256, layers=3, norm=True, last_norm=True)
    config.loss.temperature = 0.2
    config.optimizer = dict(
        name="adamw",
        learning_rate=1.5e-4 * batch_size / 256,
        schedule="warmup_cosine",
        warmup_steps=40 * images // batch_size,
        final_scale=0.0,
        weight_decay=0.1,
        momentum=0.9,
        b2=0.999,
        clip_norm=0.0,
        accumulate=1,
        ema_decay=0.0,
    )
    config.train.steps = epochs * images // batch_size
    return config
