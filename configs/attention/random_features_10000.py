"""Random-feature attention with up to 10,000 examples and two replicates.

python -m experiments.run --config=configs/attention/random_features_10000.py --workdir=runs/rf_l

Not run here, so there is no result to expect from this code. Features of 11,000 x 17,000 and a Gram
matrix of 11,000 x 10,000 with its factor and inverse: 3 GB.
"""

from ml_collections import ConfigDict

from configs.attention import random_features


def get_config() -> ConfigDict:
    config = random_features.get_config()
    config.sizes = (500, 1000, 2000, 4000, 10_000)
    config.replicates = 2
    return config
