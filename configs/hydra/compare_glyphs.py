"""Hydra beside SimCLR, SupCon and a plain classifier on 400 characters of 12 to 16 images each.

python -m experiments.run --config=configs/hydra/compare_glyphs.py --workdir=runs/compare_glyphs

Ten minutes on 2 CPU cores. Result: results/hydra.
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_glyphs
from configs.hydra.parts import peers


def get_config() -> ConfigDict:
    config = hydra_glyphs.get_config()
    config.experiment = "hydra.compare"
    config.update(peers())
    config.train.eval_every = 0
    return config
