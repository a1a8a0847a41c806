"""MoCo v3's heads and temperature one at a time, as `ablation_moco_v3_fashion` its other choices.

python -m experiments.run --config=configs/contrastive/ablation_moco_v3_heads_fashion.py \
    --workdir=runs/moco_v3_heads

Result: results/moco_v3, 2 h 3 min a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.contrastive import ablation_moco_v3_fashion


def get_config() -> ConfigDict:
    config = ablation_moco_v3_fashion.get_config()
    config.experiment = "contrastive.moco_v3_heads_ablation"
    # Each is the config above but for these values.
    config.variants = dict(
        temperature_0_1="loss.temperature=0.1",
        temperature_1="loss.temperature=1.0",
        linear_head="head.layers=1",
        no_batch_norm="head.norm=False head.last_norm=False predictor.norm=False",
    )
    return config
