"""MoCo v2's choices one at a time on 10,000 articles of clothing, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_moco_fashion.py \
    --workdir=runs/moco_ablation

Result: results/moco_v2, 40 min 48 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import MOCO_V2, as_many_images, fashion


def get_config() -> ConfigDict:
    config = parts.pretraining(
        "contrastive.moco_ablation",
        train=parts.training(steps=300, eval_every=0, checkpoint_every=300),
        **MOCO_V2,
        **fashion(),
    )
    config.recipe, config.seeds = "contrastive.moco_v2", 3
    config.head.layers = 2
    # Each is the config above but for these values.
    config.variants = dict(
        queue_256="queue.size=256",
        queue_1024="queue.size=1024",
        queue_8192="queue.size=8192",
        momentum_0="momentum.start=0.0",
        momentum_0_9="momentum.start=0.9",
        momentum_0_999="momentum.start=0.999",
        temperature_0_07="loss.temperature=0.07",
        temperature_0_5="loss.temperature=0.5",
        batch_64=as_many_images(config, 64),
        linear_head="head.layers=1",
        not_erased="augment.order=random_flip,random_affine",
    )
    return config
