"""MoCo on CIFAR-10 with a ResNet-18, after the authors' CIFAR demonstration, with v2's MLP head.

python -m experiments.run --config=configs/contrastive/moco_v2_cifar10.py \
    --workdir=runs/moco_v2_cifar10

Not run here. The demonstration (`moco_cifar10_demo.ipynb` of the authors' code) trains 200 epochs
with batch 512, SGD at 0.06 with cosine decay, weight decay 5e-4, 4,096 keys, momentum 0.99,
temperature 0.1 and eight groups for BatchNorm; its head is linear.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_cifar10


def get_config() -> ConfigDict:
    batch_size, epochs, images = 512, 200, 50_000
    config = simclr_cifar10.get_config()
    config.experiment = "contrastive.moco_v2"
    config.head = dict(hidden=512, features=128)
    config.loss = dict(temperature=0.1)
    config.queue = dict(size=4096)
    config.momentum = dict(schedule="constant", start=0.99)
    config.batch_norm = dict(groups=8, key_statistics="shuffle")
    config.optimizer.update(
        dict(
            name="sgd",
            learning_rate=0.06,
            schedule="warmup_cosine",
            warmup_steps=0,
            weight_decay=5e-4,
            momentum=0.9,
        )
    )
    config.train.update(dict(batch_size=batch_size, steps=epochs * images // batch_size))
    return config
