"""Hydra on 400 characters of 12 to 16 images: 80,200 pairs of classes, batches of drawn pairs.

python -m experiments.run --config=configs/hydra/hydra_glyphs.py --workdir=runs/hydra_glyphs

Result: results/hydra, 1 min 40 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import hydra


def get_config() -> ConfigDict:
    return parts.pretraining(
        "hydra.hydra",
        data=parts.images("glyphs", (28, 28, 1), train="train", test="test", classes=400),
        head=dict(hidden=256, features=256),
        train=parts.training(steps=600, eval_every=150, checkpoint_every=300),
        **hydra("drawn", transfer="mnist5k"),
    )
