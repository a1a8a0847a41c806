"""Hydra on ImageNet's 1,000 classes with a ResNet-50 at batch 2,048: for 16 chips.

python -m tpu.aot --config=configs/pods/hydra_imagenet2012_resnet50.py --topology=v5e:4x4
python -m experiments.run --config=configs/pods/hydra_imagenet2012_resnet50.py \
    --workdir=runs/hydra_imagenet2012_resnet50

Compiled, not trained, so there is no result to expect. Half the batch of the authors' code, for the
memory of 16 chips, and with it half the learning rate.
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_imagenet2012


def get_config() -> ConfigDict:
    config = hydra_imagenet2012.get_config()
    config.train.batch_size //= 2
    config.train.steps *= 2
    config.optimizer.learning_rate /= 2
    config.optimizer.warmup_steps *= 2
    return config
