"""One-for-All on ImageNet: a ResNet-18 learns from a ViT-Ti at exits of its stages.

python -m tpu.aot --config=configs/distillation/ofakd_imagenet2012.py --topology=v5e:4x4
python -m experiments.run --config=configs/distillation/ofakd_imagenet2012.py \
    --workdir=runs/ofakd_imagenet2012

Compiled, not trained, so there is no result to expect. Pair, the student's 100 epochs, SGD's rate
for 256 images, γ and all weights are those of the public code (Hao840/OFAKD at f7bb896). Other than
there, a batch has 1,024 images, rates fall by a cosine, and the teacher is trained here, or is that
of another run of this recipe, `--config.teaching.run=RUN`. On several devices
`--config.mesh.fsdp=4` lays the parameters of both networks over four of them.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.distillation import ofakd_cifar100

EPOCH = parts.IMAGENET * 99 // 100 // 1024
"""Steps in which the training images are seen once."""


def get_config() -> ConfigDict:
    config = ofakd_cifar100.get_config()
    config.classes = 1000
    # Training images are cropped as they are stored, one crop of each; of those that are evaluated
    # the host resizes the shorter side and keeps the centre.
    config.data = parts.images(
        "imagenet2012", (256, 256, 3), train="train[:99%]", validation="train[99%:]",
        test="validation",
    ) | dict(host_crops=True, views=1)  # fmt: skip
    config.teacher = parts.vit("vit_ti", freeze_patches=False)
    config.beside.options.gamma = 1.5
    config.loss.smoothing = 0.0
    config.rates = (0.4,)
    rhythm = dict(batch_size=1024, eval_every=0, log_every=100, checkpoint_every=1000)
    config.train.update(rhythm | dict(steps=100 * EPOCH))
    config.teaching.train.update(rhythm | dict(steps=300 * EPOCH))
    config.optimizer.update(dict(learning_rate=0.4, weight_decay=1e-4, final_scale=0.0))
    config.teaching.optimizer.update(dict(learning_rate=1e-3, warmup_steps=5 * EPOCH))
    return config
