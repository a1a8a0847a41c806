"""Hydra on 5,000 handwritten digits.

python -m experiments.run --config=configs/hydra/hydra_mnist5k.py --workdir=runs/hydra
"""

from ml_collections import ConfigDict, config_dict

from configs.contrastive import simclr_mnist5k


def get_config() -> ConfigDict:
    config = simclr_mnist5k.get_config()
    config.experiment = "hydra.hydra"
    config.data.classes = config_dict.placeholder(int)  # those of the data where not set
    config.transfer = dict(name="digits", train="train", test="test")
    config.filter = dict(
        embed=64,
        hidden=128,
        layers=2,
        combine="mean",
        gate="sigmoid",
        temperature=1.0,
        noise=0.5,
        norm="layer",
    )
    config.pairs = dict(sampling="uniform")
    config.loss = dict(
        temperature=0.1, positives="partner", denominator="own", renormalize=True, penalty=0.1
    )
    config.optimizer.warmup_steps = 50
    config.train.update(dict(steps=600, eval_every=150, checkpoint_every=300))
    return config
