"""Hydra on Omniglot: 964 characters of the background alphabets, 20 drawings each.

Prepare the data with TFDS (`omniglot`, array_record); 465,130 pairs are drawn, never listed.

python -m experiments.run --config=configs/hydra/hydra_omniglot.py --workdir=runs/hydra_omniglot
"""

from ml_collections import ConfigDict

from configs.hydra import hydra_mnist5k


def get_config() -> ConfigDict:
    config = hydra_mnist5k.get_config()
    # TFDS numbers all 1,623 characters; pairs are drawn among those that have examples.
    config.data.update(dict(name="omniglot", train="train[:80%]", test="train[80%:]", classes=1623))
    config.data.image_shape = (32, 32, 3)
    config.transfer = dict(name="omniglot", train="test[:80%]", test="test[80%:]")
    config.model = dict(name="resnet18", stem="cifar")
    config.head = dict(hidden=512, features=256)
    config.filter.update(dict(embed=512, hidden=1024))
    config.pairs.sampling = "drawn"
    config.optimizer.warmup_steps = 1000
    config.train.update(
        dict(batch_size=512, steps=20_000, log_every=100, eval_every=5000, checkpoint_every=2000)
    )
    return config
