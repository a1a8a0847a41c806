"""SimCLR on ImageNet with a ViT-B/16 at batch 32,768: for 256 chips and more.

python -m tpu.aot --config=configs/pods/simclr_imagenet2012_vit_b.py --topology=v5e:16x16
python -m experiments.run --config=configs/pods/simclr_imagenet2012_vit_b.py \
    --workdir=runs/simclr_imagenet2012_vit_b

Compiled, not trained, so there is no result to expect. The recipe is that of the ViT-S at batch
4,096 with its learning rate unscaled: what a batch of 32,768 needs is not known here.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive import simclr_imagenet2012_vit_s


def get_config() -> ConfigDict:
    batch_size, epochs = 32_768, 300
    config = simclr_imagenet2012_vit_s.get_config()
    config.model.update(dict(name="vit_b", attention="fused"))
    config.optimizer.warmup_steps = 40 * parts.IMAGENET // batch_size
    config.train.update(dict(batch_size=batch_size, steps=epochs * parts.IMAGENET // batch_size))
    return config
