"""A convolutional deep kernel machine beside the sparse Gaussian process of its kernel, on digits.

python -m experiments.run --config=configs/kernels/classification_conv_digits.py --workdir=runs/conv

Kernel, samples and splits are those of mnist5k. The first amplitude, batch and steps were chosen on
validation images of seed 0, once for both methods. Of half as many tries each, validation images
had first chosen the baseline's highest rate and the machine's least width; both grids reach further
now.

Result: results/dkm, 14 min 40 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.kernels import classification_digits


def get_config() -> ConfigDict:
    config = classification_digits.get_config()
    config.model.update(dict(patch=3, depth=1, inducing=48, amplitude=100.0, normalization="local"))
    config.model.widths = (1.0, 3.0, 10.0)
    config.tries.rates = (3e-2, 1e-1)
    config.tries.sparse_gp_rates = (1e-2, 3e-2, 6e-2, 1e-1, 2e-1, 3e-1)
    config.train.batch_size = 64
    return config
