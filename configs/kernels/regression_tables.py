"""Sparse deep kernel machines beside the NNGP of the same depth on diabetes and autompg, 10 splits.

python -m experiments.run --config=configs/kernels/regression_tables.py --workdir=runs/regression

ν is chosen on a validation part of each split's training data; nothing else was tuned. It took 37
minutes of CPU time beside other work, which its many small factorisations suffer from; it was not
timed on a quiet machine. Expected: a gain in test log-likelihood on autompg about as large as its
interval; none on diabetes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.regression",
            seed=0,
            data=dict(
                names=("diabetes", "autompg"),
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
            optimizer=dict(learning_rate=0.02),
            train=dict(steps=400),
        )
    )
