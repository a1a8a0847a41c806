"""SupCon on CIFAR-10 with a ResNet-50: the published recipe of 1,000 epochs.

python -m experiments.run --config=configs/contrastive/supcon_cifar10.py \
    --workdir=runs/supcon_cifar10

Not run here, so there is no result to expect from this code. Batch 1,024, SGD at 0.5 with 10 epochs
of warm-up and cosine decay, weight decay 1e-4 and temperature 0.1 (the authors' PyTorch code). That
code multiplies the loss by 0.1 / 0.07; here the learning rate is larger and the decay smaller by
that factor, which is the same.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_cifar10


def get_config() -> ConfigDict:
    batch_size, epochs, images = 1024, 1000, 50_000
    factor = 0.1 / 0.07
    config = simclr_cifar10.get_config()
    config.experiment = "contrastive.supcon"
    config.augment.random_resized_crop.scale = (0.2, 1.0)
    config.model.name = "resnet50"
    config.head = dict(hidden=2048, features=128)
    config.loss = dict(temperature=0.1, form="out")
    config.optimizer.update(
        dict(
            name="sgd",
            learning_rate=0.5 * factor,
            schedule="warmup_cosine",
            warmup_steps=10 * images // batch_size,
            final_scale=1e-3,
            weight_decay=1e-4 / factor,
            momentum=0.9,
        )
    )
    config.train.update(
        dict(
            batch_size=batch_size,
            steps=epochs * images // batch_size,
            eval_every=10 * images // batch_size,
            checkpoint_every=2 * images // batch_size,
        )
    )
    return config
