"""Base training on characters in many fonts: 240 base, 80 validation and 80 novel characters.

python -m experiments.run --config=configs/fewshot/base_glyphs.py --workdir=runs/base_glyphs

About a minute of CPU time.
"""

from ml_collections import ConfigDict

from configs.fewshot import base_mnist5k


def get_config() -> ConfigDict:
    config = base_mnist5k.get_config()
    config.data.update(dict(name="glyphs", validation="all"))
    config.classes = dict(base=240, validation=80, novel=80, seed=0)
    config.augment.random_affine = dict(degrees=10.0, translate=0.1, scale=(0.8, 1.2), shear=10.0)
    config.train.update(dict(steps=1000, eval_every=250, checkpoint_every=500))
    # A class has 12 images or more: 5 shots and 7 queries.
    config.episodes.queries = 7
    return config
