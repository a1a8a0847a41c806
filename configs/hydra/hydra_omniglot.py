"""Hydra on Omniglot: 964 characters of the background alphabets, 20 drawings each.

Prepare the data with TFDS (`omniglot`, array_record); 465,130 pairs are drawn, never listed.

python -m experiments.run --config=configs/hydra/hydra_omniglot.py --workdir=runs/hydra_omniglot

Not run here.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import hydra


def get_config() -> ConfigDict:
    config = parts.pretraining(
        "hydra.hydra",
        # TFDS numbers all 1,623 characters; pairs are drawn among those that have examples.
        data=parts.images(
            "omniglot", (32, 32, 3), train="train[:80%]", test="train[80%:]", classes=1623
        ),
        model=dict(name="resnet18", stem="cifar"),
        head=dict(hidden=512, features=256),
        train=parts.training(
            batch_size=512, steps=20_000, log_every=100, eval_every=5000, checkpoint_every=2000
        ),
        **hydra("drawn", embed=512, hidden=1024),
    )
    config.transfer = dict(name="omniglot", train="test[:80%]", test="test[80%:]")
    config.optimizer.warmup_steps = 1000
    return config
