"""Few-shot methods on characters in many fonts: 240 base, 80 validation and 80 novel characters.

python -m experiments.run --config=configs/fewshot/compare_glyphs.py --workdir=runs/fewshot_glyphs

Episodes of 20 ways come first since those of 5 are nearly all solved, as was seen before.
`--cpu_devices=2` shares the episodes out over two cores.

Result: results/transductive_clustering, 9 min 59 s a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    # Classes are too small for imbalanced queries; 20-way episodes cost ten times a 5-way one.
    episodes = dict(count=1000, validation=200, queries=7, ways=(20, 5), imbalanced=False)
    return parts.compare(**parts.glyphs() | dict(episodes=episodes))
