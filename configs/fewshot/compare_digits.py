"""Few-shot methods on scikit-learn's 8x8 digits: base classes 0 to 4, novel classes 5 to 9.

python -m experiments.run --config=configs/fewshot/compare_digits.py --workdir=runs/fewshot_digits

Options are chosen on held-out images of the base classes.
"""

from ml_collections import ConfigDict

from configs.fewshot import base_digits, compare_mnist5k


def get_config() -> ConfigDict:
    config, base = compare_mnist5k.get_config(), base_digits.get_config()
    for part in ("data", "augment", "model", "train"):
        config[part] = base[part]
    config.episodes.update(dict(count=2000, validation=200))
    return config
