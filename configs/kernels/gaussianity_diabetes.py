"""Units of sampled deep Gaussian processes and Bayesian neural networks of growing width.

python -m experiments.run --config=configs/kernels/gaussianity_diabetes.py --workdir=runs/gaussian

Needs BlackJAX (`pip install --constraint constraints.txt -e '.[sampling]'`). Nothing was tuned.

Result: results/dkm, 73 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.gaussianity",
            seed=0,
            precision="highest",
            data=dict(name="diabetes", points=4),
            model=dict(depth=2, width=2, noise=0.05),
            sampler=dict(
                copies=(1, 2, 4, 8, 16, 32), chains=6, warmup=400, draws=800, leapfrogs=10
            ),
            train=dict(steps=500),
        )
    )
