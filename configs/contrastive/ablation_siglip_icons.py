"""SigLIP's choices and CLIP's softmax one at a time on about 10,000 line icons, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_siglip_icons.py \
    --workdir=runs/siglip_ablation

Result: results/siglip, 50 min 39 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

import math

from ml_collections import ConfigDict

from configs.contrastive import siglip_icons
from configs.contrastive.parts import as_many_images


def get_config() -> ConfigDict:
    config = siglip_icons.get_config()
    config.experiment = "contrastive.two_towers_ablation"
    config.recipe, config.seeds = "contrastive.two_towers", 3
    config.train.update(dict(steps=300, eval_every=0, checkpoint_every=300))
    softmax = f"loss.name=clip loss.log_scale={math.log(1 / 0.07)} loss.bias=0.0"
    batch_32 = as_many_images(config, 32)
    # Each is the config above but for these values.
    config.variants = dict(
        no_bias="loss.bias=0.0 loss.learned=log_scale",
        bias_0="loss.bias=0.0",
        temperature_1="loss.log_scale=0.0",
        fixed_temperature="loss.learned=bias",
        batch_32=batch_32,
        softmax=softmax,
        softmax_32=f"{softmax} {batch_32}",
    )
    return config
