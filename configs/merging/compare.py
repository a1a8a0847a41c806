"""Methods of merging ranked on a bed of eight experts, on the same validation images.

python -m experiments.run --config=configs/merging/compare.py --workdir=runs/merging

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own.

Result: results/task_arithmetic, 6 min 48 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed("merging.compare", **parts.comparison())
