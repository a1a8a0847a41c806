"""Seconds of a sparse training epoch, to 100,000 points, and of a full gradient, against n.

python -m experiments.run --config=configs/kernels/cost_noise.py --workdir=runs/cost

Result: results/dkm, 28 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.cost",
            seed=0,
            precision="highest",
            data=dict(
                features=10,
                sparse_sizes=(12_500, 25_000, 50_000, 100_000),
                full_sizes=(500, 1000, 2000),
            ),
            model=dict(kernel="squared_exponential", depth=2, inducing=100),
            optimizer=dict(learning_rate=0.01),
            train=dict(batch_size=500, repeats=3),
        )
    )
