"""MoCo v3 on 5,000 handwritten digits, with the demo's ConvNet.

python -m experiments.run --config=configs/contrastive/moco_v3_mnist5k.py --workdir=runs/moco_v3

Two to three minutes on 2 CPU cores: a step takes 185 ms, 600 steps and the final evaluation took
151 and 176 s beside other work. Measured (seeds 0 and 1): kNN 96.2 and 96.0, linear probe 97.3 and
97.3; raw pixels have 95.4 and 89.6, so the claim of 2 points over the neighbours of pixels is not
reproduced; on seed 1 neither is that of 2 points over those of the untrained encoder (1.9). Steps
and temperature were chosen on `train[75%:]`.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.moco_v3"
    config.augment_second = config.augment.copy_and_resolve_references()
    config.head = dict(hidden=256, features=64, norm=True, last_norm=True)
    config.predictor = dict(hidden=256, features=64, norm=True)
    config.momentum = dict(schedule="cosine", start=0.99)
    config.optimizer.warmup_steps = 50
    config.train.update(dict(steps=600, eval_every=200))
    return config
