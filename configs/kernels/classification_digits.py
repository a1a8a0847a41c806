"""A sparse deep kernel machine beside the sparse Gaussian process of its kernel, on digits.

python -m experiments.run --config=configs/kernels/classification_digits.py --workdir=runs/digits

Settings and tries are those of mnist5k.

Result: results/dkm, 3 min 48 s a run on 1 x cpu (Intel(R) Xeon(R) Processor, 2 cores).
"""

from ml_collections import ConfigDict

from configs.kernels import classification_mnist5k


def get_config() -> ConfigDict:
    config = classification_mnist5k.get_config()
    config.data.update(dict(name="digits", total=1438, image_shape=(8, 8, 1)))
    config.tries.data.total = 1078
    return config
