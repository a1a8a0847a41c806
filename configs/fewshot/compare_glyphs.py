"""Few-shot methods on characters in many fonts: 240 base, 80 validation and 80 novel characters.

python -m experiments.run --config=configs/fewshot/compare_glyphs.py --workdir=runs/fewshot_glyphs

Episodes of 20 ways come first since those of 5 are nearly all solved, as was seen before.
`--cpu_devices=2` shares the episodes out over two cores.
"""

from ml_collections import ConfigDict

from configs.fewshot import base_glyphs, compare_mnist5k


def get_config() -> ConfigDict:
    config, base = compare_mnist5k.get_config(), base_glyphs.get_config()
    for part in ("data", "classes", "augment", "train"):
        config[part] = base[part]
    # Classes are too small for imbalanced queries; 20-way episodes cost ten times a 5-way one.
    config.episodes.update(
        dict(count=2000, queries=base.episodes.queries, ways=(20, 5), imbalanced=False)
    )  # fmt: skip
    return config
