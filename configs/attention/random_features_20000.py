"""Random-feature attention with up to 20,000 examples, more than the 17,000 features.

python -m experiments.run --config=configs/attention/random_features_20000.py --workdir=runs/rf_l

Two replicates; features are streamed in blocks of heads, and one factorisation a penalty serves all
sizes and targets. Of its six fits (two replicates, three models) one was run to its end: attention,
first replicate, seven to eight minutes of CPU time beside other work, 6 GB. Its relative errors:
0.007 on averages of squares, 0.053 on averages weighted by correlation, 0.976 on squared
correlations. Expect three quarters of an hour of one core.
"""

from ml_collections import ConfigDict

from configs.attention import random_features


def get_config() -> ConfigDict:
    config = random_features.get_config()
    config.sizes = (500, 1000, 2000, 4000, 10_000, 20_000)
    config.replicates = 2
    return config
