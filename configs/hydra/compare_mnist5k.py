"""Hydra beside SimCLR, SupCon and a plain classifier on 5,000 handwritten digits.

python -m experiments.run --config=configs/hydra/compare_mnist5k.py --workdir=runs/hydra_compare

Four trainings, about five minutes on 2 CPU cores. Result: results/hydra.
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_mnist5k
from configs.hydra.parts import peers


def get_config() -> ConfigDict:
    config = hydra_mnist5k.get_config()
    config.experiment = "hydra.compare"
    config.update(peers())
    config.train.update(dict(steps=400, eval_every=0, checkpoint_every=200))
    return config
