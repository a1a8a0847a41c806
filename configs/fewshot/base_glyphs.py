"""Base training on characters in many fonts: 240 base, 80 validation and 80 novel characters.

python -m experiments.run --config=configs/fewshot/base_glyphs.py --workdir=runs/base_glyphs

About a minute of CPU time. Result: results/transductive_clustering.
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    return parts.base(**parts.glyphs())
