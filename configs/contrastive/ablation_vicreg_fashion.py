"""VICReg's terms and sizes one at a time on 10,000 articles of clothing, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_vicreg_fashion.py \
    --workdir=runs/vicreg_ablation

Result: results/vicreg, 1 h 7 min a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.contrastive import vicreg_fashion
from configs.contrastive.parts import as_many_images


def get_config() -> ConfigDict:
    config = vicreg_fashion.get_config()
    config.experiment = "contrastive.vicreg_ablation"
    config.recipe, config.seeds = "contrastive.views", 3
    config.train.update(dict(steps=300, eval_every=0, checkpoint_every=300))
    # Each is the config above but for these values.
    config.variants = dict(
        no_variance="loss.variance=0.0",
        no_covariance="loss.covariance=0.0",
        no_invariance="loss.invariance=0.0",
        invariance_only="loss.variance=0.0 loss.covariance=0.0",
        equal_weights="loss.variance=1.0 loss.invariance=1.0",
        expander_32="head.features=32",
        expander_1024="head.features=1024",
        batch_64=as_many_images(config, 64),
    )
    return config
