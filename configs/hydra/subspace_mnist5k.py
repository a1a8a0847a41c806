"""Two arbitrary classes under SimCLR, on 5,000 handwritten digits.

python -m experiments.run --config=configs/hydra/subspace_mnist5k.py --workdir=runs/hydra_subspace

SimCLR alone is trained: `loss`, `filter`, `projections`, `supcon` and `transfer`, which other
recipes of Hydra read, change nothing.

Result: results/hydra, 75 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_mnist5k
from configs.hydra.parts import peers


def get_config() -> ConfigDict:
    config = hydra_mnist5k.get_config()
    config.experiment = "hydra.subspace"
    config.update(peers())
    config.train.update(dict(steps=400, eval_every=0, checkpoint_every=200))
    config.subspace = dict(
        pairs=12, images=500, steps=100, learning_rate=0.1, temperature=0.1, penalty=0.1
    )
    return config
