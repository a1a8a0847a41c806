"""Random-feature attention with up to 20,000 examples, more than the 17,000 features.

python -m experiments.run --config=configs/attention/random_features_20000.py --workdir=runs/rf_l
Two replicates. Features are streamed in blocks of heads; the Gram matrix of 20,000 x 20,000, its
factor and copies of parts took 4.5 GB where it was looked at. One factorisation a penalty serves
all sizes and targets. By its parts' speeds some 35 minutes of one CPU core; it has not been run to
its end, so there is no result to expect yet.
"""

from ml_collections import ConfigDict

from configs.attention import random_features


def get_config() -> ConfigDict:
    config = random_features.get_config()
    config.sizes = (500, 1000, 2000, 4000, 10_000, 20_000)
    config.replicates = 2
    return config
