"""Hydra beside SimCLR, SupCon and a plain classifier on 400 characters of 12 to 16 images each.

python -m experiments.run --config=configs/hydra/compare_glyphs.py --workdir=runs/compare_glyphs

Measured (seed 0, 942 s beside other work): kNN of Hydra, SupCon, SimCLR 70.2, 70.0, 48.2; linear
probe 89.5, 91.2, 87.0; RankMe of the projections 64.3, 63.7, 38.9. Gate overlap ranks the 79,800
pairs of characters as the classifier confuses them with a Spearman correlation of 0.33.
"""

from ml_collections import ConfigDict

from configs.hydra import compare_mnist5k, hydra_glyphs


def get_config() -> ConfigDict:
    config = hydra_glyphs.get_config()
    other = compare_mnist5k.get_config()
    config.experiment = other.experiment
    config.simclr = other.simclr
    config.supcon = other.supcon
    config.train.eval_every = 0
    return config
