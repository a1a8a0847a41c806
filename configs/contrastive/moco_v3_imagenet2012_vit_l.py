"""MoCo v3 on ImageNet with a ViT-L/16, the recipe of ViT-S: for pods.

python -m experiments.run --config=configs/contrastive/moco_v3_imagenet2012_vit_l.py \
    --workdir=runs/moco_v3_imagenet2012_vit_l --config.mesh.fsdp=8

Not run here, so there is no result to expect from this code. 300 epochs of batch 4,096.
"""

from ml_collections import ConfigDict

from configs.contrastive import moco_v3_imagenet2012_vit_s


def get_config() -> ConfigDict:
    config = moco_v3_imagenet2012_vit_s.get_config()
    config.model.update(dict(name="vit_l", heads=16))
    return config
