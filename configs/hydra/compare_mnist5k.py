"""Hydra beside SimCLR, SupCon and a plain classifier on 5,000 handwritten digits.

python -m experiments.run --config=configs/hydra/compare_mnist5k.py --workdir=runs/hydra_compare

Four trainings, about five minutes on 2 CPU cores (430 to 690 s beside other work). What to expect,
over three seeds, is in WORKSPACE.md, "Measured".
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_mnist5k


def get_config() -> ConfigDict:
    config = hydra_mnist5k.get_config()
    config.experiment = "hydra.compare"
    config.simclr = dict(temperature=0.2)
    config.supcon = dict(temperature=0.1)
    config.train.update(dict(steps=400, eval_every=0, checkpoint_every=200))
    return config
