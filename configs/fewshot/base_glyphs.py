"""Base training on characters in many fonts: 240 base, 80 validation and 80 novel characters.

python -m experiments.run --config=configs/fewshot/base_glyphs.py --workdir=runs/base_glyphs

Result: results/transductive_clustering, 42 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    return parts.base(**parts.glyphs())
