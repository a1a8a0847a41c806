"""Hydra beside SimCLR, SupCon and a plain classifier on 400 characters of 12 to 16 images each.

python -m experiments.run --config=configs/hydra/compare_glyphs.py --workdir=runs/compare_glyphs
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
