"""Novel characters: 240 to train on, 80 to choose options on, 80 novel ones, in many fonts.

python -m experiments.run --config=configs/metric/novel_glyphs.py --workdir=runs/novel_glyphs

Of each character there are 12 to 16 images. Every split of the characters has encoders of its own.
`--config.splits=1` takes a fifth of the time.

Result: results/hyperspherical, 44 min 53 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.metric.parts import novel_characters


def get_config() -> ConfigDict:
    return novel_characters(splits=5, base=240, validation=80, novel=80)
