"""Random-feature attention with up to 20,000 examples, more than the 17,000 features.

python -m experiments.run --config=configs/attention/random_features_20000.py --workdir=runs/rf_l

Two replicates; features are streamed in blocks of heads, and one factorisation a penalty serves all
sizes and targets.

Not run in full here. `make claims ONLY=rf_attention` measures it into results/rf_attention.
"""

from ml_collections import ConfigDict

from configs.attention import random_features


def get_config() -> ConfigDict:
    config = random_features.get_config()
    config.sizes = (500, 1000, 2000, 4000, 10_000, 20_000)
    config.replicates = 2
    return config
