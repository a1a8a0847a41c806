"""Sparse deep kernel machines beside the NNGP of the same depth: three tables, 10 splits each.

python -m experiments.run --config=configs/kernels/regression_tables.py --workdir=runs/regression

Diabetes (scikit-learn), autompg and Boston (mlxtend). ν and the learning rate, and for the NNGP one
of as many learning rates, are chosen on a validation part of each split's training data; nothing
else was tuned.

Result: results/dkm, 5 min 26 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.regression",
            seed=0,
            precision="highest",
            data=dict(
                names=("diabetes", "autompg", "boston"),
                splits=10,
                train_share=0.8,
                validation_share=0.25,
            ),
            model=dict(
                kernel="squared_exponential",
                depth=2,
                inducing=50,
                widths=(1.0, 10.0, 100.0, 1000.0),
                normalization="none",
            ),
            optimizer=dict(
                rates=(0.02, 0.08),
                nngp_rates=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
            ),
            train=dict(steps=400),
        )
    )
