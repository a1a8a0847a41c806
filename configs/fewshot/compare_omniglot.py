"""Few-shot methods on Omniglot: drawn characters, those of the `test` alphabets as novel classes.

Prepare the data with TFDS (`omniglot`, array_record). TFDS's `train` holds 964 characters, here 864
base and 100 validation classes; its `test` 659 others.

python -m experiments.run --config=configs/fewshot/compare_omniglot.py --workdir=runs/omniglot

Not measured: the data is not carried with the repository.
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    splits = dict(base="train[:90%]", held_out="train[90%:]", validation="train", novel="test")
    return parts.compare(
        data=parts.images("omniglot", (32, 32, 3), **splits),
        classes=dict(base=864, validation=100, novel=659, seed=0),
        augment=parts.characters(),
        train=parts.training(steps=5000, eval_every=1000, checkpoint_every=1000),
        # A class has 20 drawings.
        episodes=dict(ways=(20, 5)),
    )
