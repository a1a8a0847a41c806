"""MoCo v3 on ImageNet with a ViT-L/16 at batch 4,096: for 256 chips of 32 GiB.

python -m tpu.aot --config=configs/pods/moco_v3_imagenet2012_vit_l.py --topology=v6e:16x16
python -m experiments.run --config=configs/pods/moco_v3_imagenet2012_vit_l.py \
    --workdir=runs/moco_v3_imagenet2012_vit_l_pod

Compiled, not trained, so there is no result to expect. Parameters, their average and AdamW's state
are whole on every chip: there is room for them, and gathering them costs more than it saves.
"""

from ml_collections import ConfigDict

from configs.contrastive import moco_v3_imagenet2012_vit_s


def get_config() -> ConfigDict:
    config = moco_v3_imagenet2012_vit_s.get_config()
    config.model.update(dict(name="vit_l", heads=16, attention="fused"))
    return config
