"""Base training on scikit-learn's 8x8 digits: seconds, for a first look and for tests.

python -m experiments.run --config=configs/fewshot/base_digits.py --workdir=runs/base_digits

Half a minute of CPU time. Five classes of such images teach little of the others: the claims do not
hold here (WORKSPACE.md, "Measured").
"""

from ml_collections import ConfigDict

from configs.fewshot import base_mnist5k


def get_config() -> ConfigDict:
    config = base_mnist5k.get_config()
    config.data.update(dict(name="digits", image_shape=(8, 8, 1)))
    config.augment.random_affine = dict(degrees=15.0, translate=0.1, scale=(0.8, 1.2), shear=10.0)
    config.model.update(dict(features=128, kernel_sizes=(3, 3), strides=(1, 2)))
    config.train.update(dict(steps=300))
    return config
