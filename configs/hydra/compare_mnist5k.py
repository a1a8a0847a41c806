"""Hydra beside SimCLR, SupCon and a plain classifier on 5,000 handwritten digits.

python -m experiments.run --config=configs/hydra/compare_mnist5k.py --workdir=runs/hydra_compare

Options are chosen on the last quarter of the training images, which no method trains on.

Temperatures of the losses and the rate of the classifier are those of `tries` alone, which replace
the config's own, as they do one of four rates of each other method.

Result: results/hydra, 9 min 43 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_mnist5k
from configs.hydra.parts import peers, tries


def get_config() -> ConfigDict:
    config = hydra_mnist5k.get_config()
    config.experiment = "hydra.compare"
    config.update(peers())
    config.data.update(dict(train="train[:75%]", validation="train[75%:]"))
    config.optimizer.warmup_steps = 20
    config.tries = tries(60)
    config.train.update(dict(steps=400, eval_every=0, checkpoint_every=200))
    return config
