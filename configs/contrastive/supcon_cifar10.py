"""SupCon on CIFAR-10 with a ResNet-50: the published recipe of 1,000 epochs.

python -m experiments.run --config=configs/contrastive/supcon_cifar10.py \
    --workdir=runs/supcon_cifar10

Not run here, so there is no result to expect from this code. Batch 1,024, SGD at 0.5 with 10 epochs
of warm-up and cosine decay, weight decay 1e-4 and temperature 0.1 (the authors' PyTorch code). That
code multiplies the loss by 0.1 / 0.07; here the learning rate is larger and the decay smaller by
that factor, which is the same.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    factor = 0.1 / 0.07
    return parts.cifar(
        "contrastive.supcon",
        batch_size=1024,
        epochs=1000,
        augment=parts.crops(32, scale=(0.2, 1.0)),
        model=dict(name="resnet50", stem="cifar"),
        head=dict(hidden=2048, features=128),
        loss=dict(temperature=0.1, form="out"),
        optimizer=parts.optimizer(
            "sgd",
            learning_rate=0.5 * factor,
            warmup_steps=10 * 50_000 // 1024,
            final_scale=1e-3,
            weight_decay=1e-4 / factor,
        ),
    )
