"""A sparse deep kernel machine trained on up to 100,000 points of Friedman's first function.

python -m experiments.run --config=configs/kernels/learning_friedman.py --workdir=runs/learning

Nothing was tuned: ν, depth and rate are those of the other configs here or stand before any run.

Result: results/dkm, 26 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.learning",
            seed=0,
            precision="highest",
            data=dict(sizes=(300, 1000, 10_000, 100_000), test=2000, noise=1.0, draws=2),
            model=dict(kernel="squared_exponential", depth=2, inducing=100, width=10.0),
            optimizer=dict(learning_rate=0.01),
            train=dict(batch_size=250, steps=1000),
        )
    )
