"""Few-shot methods on a user's features, such as those of mini-ImageNet by a trained ResNet.

python -m experiments.run --config=configs/fewshot/compare_npz.py --workdir=runs/fewshot_npz \
    --config.data.name=npz:features.npz

The file holds `x_base`, `x_validation` and `x_novel` [n, d] with `y_base`, `y_validation` and
`y_novel` [n]; λ and neighbours are chosen on the validation classes. A file with only `x` and `y`:
`--config.features.of=pixels`, its width as `data.image_shape` and classes split as `classes` says
(here 64, 16 and 20, mini-ImageNet's numbers).
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    config = parts.compare(classes=dict(base=64, validation=16, novel=20, seed=0))
    config.data.update(
        dict(
            name="npz:features.npz", base="all", held_out="all", validation="all", novel="all",
            image_shape=(640,), image_dtype="float32",
        )
    )  # fmt: skip
    config.features.of = "npz"
    return config
