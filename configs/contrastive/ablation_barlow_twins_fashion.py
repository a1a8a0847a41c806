"""Barlow Twins' choices one at a time on 10,000 articles of clothing, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_barlow_twins_fashion.py \
    --workdir=runs/barlow_twins_ablation

Result: results/barlow_twins, 22 min 39 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.contrastive import barlow_twins_fashion
from configs.contrastive.parts import as_many_images


def get_config() -> ConfigDict:
    config = barlow_twins_fashion.get_config()
    config.experiment = "contrastive.barlow_twins_ablation"
    config.recipe, config.seeds = "contrastive.views", 3
    config.train.update(dict(steps=300, eval_every=0, checkpoint_every=300))
    # Each is the config above but for these values.
    config.variants = dict(
        redundancy_0="loss.redundancy=0.0",
        redundancy_0_0005="loss.redundancy=0.0005",
        redundancy_0_05="loss.redundancy=0.05",
        width_32="head.features=32",
        width_1024="head.features=1024",
        batch_64=as_many_images(config, 64),
        erased_only="augment.order=random_erase",  # without flips and warps
    )
    return config
