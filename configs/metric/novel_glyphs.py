"""Novel characters: 240 to train on, 80 to choose options on, 80 novel ones, in many fonts.

python -m experiments.run --config=configs/metric/novel_glyphs.py --workdir=runs/novel_glyphs

Of each character there are 12 to 16 images. Every split of the characters has encoders of its own.
`--config.splits=1` takes half of the time.

Result: results/hyperspherical, 17 min 41 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.metric.parts import novel_classes


def get_config() -> ConfigDict:
    return novel_classes(
        batch=(16, 8), steps=800, try_steps=300,
        data=parts.images(
            "glyphs", (28, 28, 1), base="train", held_out="test", validation="all", novel="all"
        ),
        classes=dict(base=240, validation=80, novel=80, seed=0),
        augment=parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0),
    )  # fmt: skip
