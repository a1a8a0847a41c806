"""Sparse deep kernel machines beside the NNGP of the same depth: three further tables.

python -m experiments.run --config=configs/kernels/regression_further.py --workdir=runs/further

Wine and tumours (scikit-learn), 500 flights (`make assets`). Settings, splits and tries are those
of regression_tables; nothing was tuned.

Result: results/dkm, 5 min 9 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.kernels import regression_tables


def get_config() -> ConfigDict:
    config = regression_tables.get_config()
    config.experiment = "kernels.further"
    config.data.update(dict(names=("wine", "cells", "flights"), flights=500))
    return config
