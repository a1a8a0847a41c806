"""MoCo v2 on ImageNet with a ResNet-50: the published recipe of 200 epochs.

python -m experiments.run --config=configs/contrastive/moco_v2_imagenet2012_resnet50.py \
    --workdir=runs/moco_v2_imagenet2012_resnet50

Not run here, so there is no result to expect from this code. Batch 256, SGD at 0.03 with cosine
decay and no warm-up, weight decay 1e-4, 65,536 keys, momentum 0.999 (arXiv:1911.05722, Sections 3.3
and 4.1), temperature 0.2, MLP head, stronger augmentation (arXiv:2003.04297, Section 3). Eight
groups of 32 images stand for its eight devices. Images stay in [0, 1], not standardised.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_imagenet2012_resnet50


def get_config() -> ConfigDict:
    batch_size, epochs, images = 256, 200, 1_281_167
    config = simclr_imagenet2012_resnet50.get_config()
    config.experiment = "contrastive.moco_v2"
    config.augment.random_resized_crop.scale = (0.2, 1.0)
    config.augment.color_jitter = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)
    config.head = dict(hidden=2048, features=128, norm=False)
    config.loss = dict(temperature=0.2)
    config.queue = dict(size=65_536)
    config.momentum = dict(schedule="constant", start=0.999)
    config.batch_norm = dict(groups=8, key_statistics="shuffle")
    config.optimizer.update(
        dict(
            name="sgd",
            learning_rate=0.03 * batch_size / 256,
            schedule="warmup_cosine",
            warmup_steps=0,
            weight_decay=1e-4,
            momentum=0.9,
        )
    )
    config.train.update(dict(batch_size=batch_size, steps=epochs * images // batch_size))
    return config
