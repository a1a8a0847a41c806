"""Hydra on 5,000 handwritten digits.

python -m experiments.run --config=configs/hydra/hydra_mnist5k.py --workdir=runs/hydra

Chosen on a validation part (`train[:75%]` against `train[75%:]`), here and on `digits` and rendered
glyphs: both classes positive (with the partner's alone, 250 classes do not get started), the
product of the classes' gates, 256 projections.

Result: results/hydra, 70 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import hydra


def get_config() -> ConfigDict:
    return parts.pretraining(
        "hydra.hydra",
        data=parts.images("mnist5k", (28, 28, 1), train="train", test="test", classes=10),
        head=dict(hidden=256, features=256),
        train=parts.training(steps=600, eval_every=150, checkpoint_every=300),
        **hydra(),
    )
