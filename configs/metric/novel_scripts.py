"""Whole scripts held out: Latin and Greek to train on, Cyrillic to choose on, two novel ones.

python -m experiments.run --config=configs/metric/novel_scripts.py --workdir=runs/novel_scripts

Armenian and Georgian are novel, 62 characters that look less like those trained on than other
characters of one script do. There is one split of the classes: runs differ by their seeds.
"""

from ml_collections import ConfigDict

from configs.metric.parts import novel_characters


def get_config() -> ConfigDict:
    base, validation, novel = range(293), range(293, 338), range(338, 400)
    return novel_characters(
        splits=1, base=tuple(base), validation=tuple(validation), novel=tuple(novel)
    )
