"""MoCo v2 on 5,000 handwritten digits.

python -m experiments.run --config=configs/contrastive/moco_v2_mnist5k.py --workdir=runs/moco_v2

Two to three minutes on 2 CPU cores: a step takes 65 ms where nothing else runs, 800 steps and the
final evaluation took 130 and 166 s beside other work. Measured (seeds 0 and 1): kNN 96.3 and 96.3,
linear probe 97.4 and 97.4; raw pixels have 95.4 and 89.6, so the claim of 2 points over the
neighbours of pixels is not reproduced. Steps and options were chosen on `train[75%:]`; there, after
1,000 steps, kNN is 97.5 with shuffled groups, 97.3 with running statistics and 97.1 without either.
"""

from ml_collections import ConfigDict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "contrastive.moco_v2"
    config.queue = dict(size=2048)
    config.momentum = dict(schedule="constant", start=0.99)
    config.batch_norm = dict(groups=8, key_statistics="shuffle")
    config.optimizer.warmup_steps = 50
    config.train.update(dict(steps=800, eval_every=200))
    return config
