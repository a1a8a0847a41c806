"""MoCo v2's queue and momentum one at a time on 10,000 articles of clothing, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_moco_fashion.py \
    --workdir=runs/moco_ablation

Result: results/moco_v2, 16 min 45 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import fashion


def get_config() -> ConfigDict:
    config = parts.pretraining(
        "contrastive.moco_ablation",
        queue=dict(size=2048),
        momentum=dict(schedule="constant", start=0.99),
        batch_norm=dict(groups=8, key_statistics="shuffle"),
        train=parts.training(steps=300, eval_every=0, checkpoint_every=300),
        **fashion(),
    )
    config.recipe, config.seeds = "contrastive.moco_v2", 3
    # Each is the config above but for these values.
    config.variants = dict(
        queue_256="queue.size=256",
        queue_1024="queue.size=1024",
        queue_8192="queue.size=8192",
        momentum_0="momentum.start=0.0",
        momentum_0_9="momentum.start=0.9",
        momentum_0_999="momentum.start=0.999",
    )
    return config
