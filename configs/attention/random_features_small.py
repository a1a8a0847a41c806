"""Random-feature attention with fewer heads and examples, for a first look.

python -m experiments.run --config=configs/attention/random_features_small.py --workdir=runs/rf_s

Result: results/rf_attention, 8.7 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.attention import random_features


def get_config() -> ConfigDict:
    config = random_features.get_config()
    # The dimensions stay: with few, examples suffice for all models and the bias is no gain.
    config.update(dict(heads=200, sizes=(250, 500, 1000), test=500, replicates=2))
    config.scaling.update(dict(d=4, num_keys=(1, 3, 7), replicates=2, test=400))
    config.scaling.sizes.update(
        dict(rfa=(2, 4, 8, 16, 32, 64, 128), rf_mlp=(4, 8, 32, 128, 512, 2048))
    )
    config.limit.update(dict(d=4, num_keys=4, examples=16, replicates=8))
    return config
