"""Methods of merging on a bed of eight experts, ranked under one budget.

python -m experiments.run --config=configs/merging/compare.py --workdir=runs/merging

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own, about six minutes of one CPU core; the
rest takes some four. Result: results/task_arithmetic.
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed("merging.compare", **parts.comparison())
