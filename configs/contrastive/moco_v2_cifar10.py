"""MoCo on CIFAR-10 with a ResNet-18, after the authors' CIFAR demonstration, with v2's MLP head.

python -m experiments.run --config=configs/contrastive/moco_v2_cifar10.py \
    --workdir=runs/moco_v2_cifar10

Not run here. The demonstration (`moco_cifar10_demo.ipynb` of the authors' code) trains 200 epochs
with batch 512, SGD at 0.06 with cosine decay, weight decay 5e-4, 4,096 keys, momentum 0.99,
temperature 0.1 and eight groups for BatchNorm; its head is linear.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return parts.cifar(
        "contrastive.moco_v2",
        batch_size=512,
        epochs=200,
        head=dict(hidden=512, features=128),
        loss=dict(temperature=0.1),
        queue=dict(size=4096),
        momentum=dict(schedule="constant", start=0.99),
        batch_norm=dict(groups=8, key_statistics="shuffle"),
        optimizer=parts.optimizer("sgd", learning_rate=0.06, warmup_steps=0, weight_decay=5e-4),
    )
