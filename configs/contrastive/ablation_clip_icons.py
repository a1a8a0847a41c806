"""CLIP's choices one at a time on about 10,000 line icons, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_clip_icons.py \
    --workdir=runs/clip_ablation

Result: results/clip, 26 min 45 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

import math

from ml_collections import ConfigDict

from configs.contrastive import clip_icons
from configs.contrastive.parts import as_many_images


def get_config() -> ConfigDict:
    config = clip_icons.get_config()
    config.experiment = "contrastive.clip_ablation"
    config.recipe, config.seeds = "contrastive.two_towers", 3
    config.loss.learned = ("log_scale",)
    config.train.update(dict(steps=300, eval_every=0, checkpoint_every=300))
    # Each is the config above but for these values.
    config.variants = dict(
        fixed_1="loss.learned= loss.log_scale=0.0",
        fixed_0_07="loss.learned=",
        fixed_0_01=f"loss.learned= loss.log_scale={math.log(100)}",
        learned_from_1="loss.log_scale=0.0",
        batch_32=as_many_images(config, 32),
        batch_64=as_many_images(config, 64),
        linear_head="head.layers=1",
    )
    return config
