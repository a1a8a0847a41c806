"""Mixed examples for losses of pairs: characters look for their like among novel ones.

python -m experiments.run --config=configs/metric/mixed_glyphs.py --workdir=runs/mixed_glyphs

The splits of the characters are those of `configs/metric/novel_glyphs.py`.
"""

from ml_collections import ConfigDict

from configs.metric import novel_glyphs
from configs.metric.parts import mixing_methods, mixing_tries


def get_config() -> ConfigDict:
    config = novel_glyphs.get_config()
    config.experiment = "metric.mixing"
    for replaced in ("methods", "tries", "growth"):
        del config[replaced]
    config.update(
        methods=mixing_methods(),
        tries=mixing_tries(steps=200),
        mixing=dict(weight=0.4, alpha=2.0, layer="conv1", input=1, feature=2, embedding=16),
        evaluation=dict(batch_size=500),
    )
    config.train.steps = config.train.checkpoint_every = 600
    config.splits = 3
    return config
