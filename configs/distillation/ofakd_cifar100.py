"""One-for-All on CIFAR-100 at 224 pixels: a ResNet-18 learns from a ViT-S at exits of its stages.

python -m experiments.run --config=configs/distillation/ofakd_cifar100.py \
    --workdir=runs/ofakd_cifar100

Not run, so there is no result to expect from this code. Pair, sizes, the student's length, SGD with
its rates and decay, smoothing, γ and all weights are those of the public code (Hao840/OFAKD at
f7bb896). Other than there, the teacher is not pretrained on ImageNet: it is trained here, or is
that of another run of this recipe, `--config.teaching.run=RUN`. A tenth of the training images is
held out for accuracies during training, and images have no RandAugment.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.distillation import distill_fashion

EPOCH = 45_000 // 128
"""Steps in which the training images are seen once."""


def get_config() -> ConfigDict:
    config = distill_fashion.get_config()
    config.classes = 100
    config.data = parts.images(
        "cifar100", (224, 224, 3), train="train[:90%]", validation="train[90%:]", test="test"
    )
    config.augment = parts.crops(224) | dict(order=("random_resized_crop", "random_flip"))
    config.teacher = parts.vit("vit_s", freeze_patches=False)
    config.student = dict(name="resnet18")
    config.beside.update(dict(loss="ofa", label=1.0, weight=1.0))
    config.beside.exits = dict(width=512)
    config.beside.options = dict(gamma=1.0, temperature=1.0)
    config.loss.smoothing = 0.1
    config.rates = (0.05,)
    rhythm = dict(batch_size=128, steps=300 * EPOCH, eval_every=10 * EPOCH, log_every=50,
                  checkpoint_every=10 * EPOCH)  # fmt: skip
    config.train.update(rhythm)
    config.teaching.train.update(rhythm)
    config.optimizer = parts.optimizer(
        "sgd", learning_rate=0.05, warmup_steps=0, weight_decay=2e-3, final_scale=0.02
    )
    config.teaching.optimizer = parts.optimizer(
        learning_rate=5e-4, warmup_steps=20 * EPOCH, weight_decay=0.05, clip_norm=5.0
    )
    config.dtype = "bfloat16"
    return config
