"""Few-shot methods on Omniglot: drawn characters, those of the `test` alphabets as novel classes.

Prepare the data with TFDS (`omniglot`, array_record). TFDS's `train` holds 964 characters, here 864
base and 100 validation classes; its `test` 659 others.

python -m experiments.run --config=configs/fewshot/compare_omniglot.py --workdir=runs/omniglot

Not measured: the data is not carried with the repository.
"""

from ml_collections import ConfigDict

from configs.fewshot import compare_mnist5k


def get_config() -> ConfigDict:
    config = compare_mnist5k.get_config()
    config.data.update(
        dict(
            name="omniglot", base="train[:90%]", held_out="train[90%:]", validation="train",
            novel="test", image_shape=(32, 32, 3),
        )
    )  # fmt: skip
    config.classes = dict(base=864, validation=100, novel=659, seed=0)
    config.augment.random_affine = dict(degrees=10.0, translate=0.1, scale=(0.8, 1.2), shear=10.0)
    config.train.update(dict(steps=5000, eval_every=1000, checkpoint_every=1000))
    # A class has 20 drawings.
    config.episodes.update(dict(ways=(20, 5), queries=15))
    return config
