"""All ways of merging on eight experts of drawn and photographed things, one table.

python -m experiments.run --config=configs/merging/experts.py --workdir=runs/experts

Needs the archives of `make assets`. The base learns every second character and the icons of 400
concepts; tasks are other characters, other icons, handwritten digits, clothes (two tasks), emoji,
clip art and units of a game, each with a thousand test images.

Result: results/twin_merging, 9 min 7 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.experts()
