"""Hydra beside SimCLR, SupCon and a plain classifier on 400 characters of 12 to 16 images each.

python -m experiments.run --config=configs/hydra/compare_glyphs.py --workdir=runs/compare_glyphs

Options are chosen on a quarter of the training images, which no method trains on. The taxonomy that
relations of classes are held against is Unicode's blocks.

Temperatures of the losses and the rate of the classifier are those of `tries` alone, which replace
the config's own, as they do one of four rates of each other method.

Result: results/hydra, 16 min 19 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_glyphs
from configs.hydra.parts import peers, tries


def get_config() -> ConfigDict:
    config = hydra_glyphs.get_config()
    config.experiment = "hydra.relations"
    config.update(peers())
    config.data.update(dict(train="train[:75%]", validation="train[75%:]"))
    config.optimizer.warmup_steps = 20
    config.tries = tries(60)
    config.taxonomy = dict(key="unicode_block", test=dict(permutations=999))
    config.train.update(dict(steps=400, eval_every=0, checkpoint_every=200))
    return config
