"""SimCLR on ImageNet with a ViT-S/16, as trained for comparison in MoCo v3 (arXiv:2104.02057).

python -m experiments.run --config=configs/contrastive/simclr_imagenet2012_vit_s.py \
    --workdir=runs/simclr_imagenet2012_vit_s

Not run here. Batch 4,096 and 300 epochs; optimiser and head are those of MoCo v3's ViT-S.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.imagenet(
        "contrastive.simclr",
        batch_size=4096,
        epochs=300,
        name="adamw",
        rate=1.5e-4,
        warmup_epochs=40,
        weight_decay=0.1,
        model=parts.vit("vit_s"),
        head=dict(hidden=4096, features=256, layers=3, norm=True, last_norm=True),
        loss=dict(temperature=0.2),
    )
