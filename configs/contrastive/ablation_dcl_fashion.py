"""DCL beside NT-Xent by batch on 10,000 articles of clothing, three seeds each.

python -m experiments.run --config=configs/contrastive/ablation_dcl_fashion.py \
    --workdir=runs/dcl_ablation

Result: results/dcl, 24 min 47 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import DCL, as_many_images, fashion


def get_config() -> ConfigDict:
    config = parts.pretraining(
        "contrastive.dcl_ablation",
        loss=DCL,
        train=parts.training(steps=300, eval_every=0, checkpoint_every=300),
        **fashion(),
    )
    config.recipe, config.seeds = "contrastive.views", 3
    dcl, nt_xent = "loss.sigma", "loss.name=nt_xent loss.sigma"  # neither weights positives
    batch_64, batch_32 = as_many_images(config, 64), as_many_images(config, 32)
    # Each is the config above but for these values, or without a key that has none.
    config.variants = dict(
        dcl=dcl,
        nt_xent=nt_xent,
        dcl_64=f"{dcl} {batch_64}",
        nt_xent_64=f"{nt_xent} {batch_64}",
        dcl_32=f"{dcl} {batch_32}",
        nt_xent_32=f"{nt_xent} {batch_32}",
        temperature_0_05="loss.temperature=0.05",
        temperature_0_5="loss.temperature=0.5",
    )
    return config
