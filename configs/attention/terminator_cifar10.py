"""Terminator on CIFAR-10 at the sizes of the public code: five blocks, 32x32 pixels, batches of 64.

python -m experiments.run --config=configs/attention/terminator_cifar10.py \
    --workdir=runs/terminator_cifar10

Not run, so there is no result to expect from this code. Sizes, Kar's rate and decays, warm-up,
length, smoothing, dropout and the penalty of weights are those of the public code
(lalalune/Terminator at 98873b5). Other than there, a tenth of the training images is held out for
the choice of optimiser and rate, and evaluations do not depend on the other images of their batch.
Images are flipped and shifted by up to four pixels in each direction, with their edge repeated, in
the place of crops of images padded by as many. The residual net is a ResNet-18; the convolutional
one has as many parameters as Terminator.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.attention import terminator

EPOCH = 45_000 // 64
"""Steps in which the training images are seen once."""


def get_config() -> ConfigDict:
    config = terminator.get_config()
    config.data = parts.images(
        "cifar10", (32, 32, 3), train="train[:90%]", validation="train[90%:]", test="test"
    )
    config.augment = dict(
        exchange=False,
        order=("random_affine", "random_flip"),
        random_affine=dict(degrees=0.0, translate=4 / 32, scale=(1.0, 1.0), shear=0.0, fill="edge"),
        random_flip=dict(),
    )
    config.models.terminator.update(
        dict(
            factors=(4, 3, 2, 2, 2),  # 3, 12, 36, 72, 144 and 288 channels
            layers=(3, 2, 2, 2, 2),
            local_sizes=(3, 9, 5, 7),
            hidden=64,
            local_hidden=32,
        )
    )
    with config.models.ignore_type():
        config.models.resnet = dict(name="resnet18", stem="cifar")
    config.models.convnet.update(
        widths=(64, 128, 240, 448), kernel_sizes=(3, 3, 3, 3), strides=(1, 2, 2, 2)
    )
    config.loss.norms = 4e-5
    config.optimizer.warmup_steps = 8 * EPOCH
    config.optimizers.kar.rates = (4e-4, 1.2e-3, 3.6e-3)
    config.optimizers.adamw.rates = (3e-4, 1e-3, 3e-3)
    config.tries.steps = 10 * EPOCH
    config.train.update(
        dict(steps=100 * EPOCH, batch_size=64, log_every=50, checkpoint_every=10 * EPOCH)
    )
    config.evaluation.batch_size = 1000
    return config
