"""MoCo v3's choices one at a time, a small vision transformer on 10,000 articles of clothing.

python -m experiments.run --config=configs/contrastive/ablation_moco_v3_fashion.py \
    --workdir=runs/moco_v3_ablation

Result: results/moco_v3, 1 h 44 min a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.contrastive.parts import as_many_images, fashion, mlp


def get_config() -> ConfigDict:
    shown = fashion()
    config = parts.pretraining(
        "contrastive.moco_v3_ablation",
        augment_second=shown["augment"],
        model=parts.vit("vit_ti", patch_size=7, width=96, depth=4, heads=4, remat=False),
        head=mlp(64, last_norm=True),
        predictor=mlp(64),
        momentum=dict(schedule="constant", start=0.99),
        train=parts.training(steps=300, eval_every=0, checkpoint_every=300),
        **shown,
    )
    config.recipe, config.seeds = "contrastive.moco_v3", 3
    # Each is the config above but for these values, or without a key that has none.
    config.variants = dict(
        trained_patches="model.freeze_patches=False",
        learned_positions="model.positions=learned",
        no_predictor="predictor",
        momentum_0="momentum.start=0.0",
        momentum_0_9="momentum.start=0.9",
        momentum_0_999="momentum.start=0.999",
        batch_64=as_many_images(config, 64),
    )
    return config
