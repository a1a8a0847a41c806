"""Sampled deep Gaussian processes of growing width beside the deep kernel machine's optimum.

python -m experiments.run --config=configs/kernels/width_diabetes.py --workdir=runs/width

Needs BlackJAX (`pip install --constraint constraints.txt -e '.[sampling]'`). The spread of sampled
Gram matrices falls as the width to the power -1/2 by the law of large numbers; the claim is about
the distance of their mean.

Result: results/dkm, 61 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.width",
            seed=0,
            precision="highest",
            data=dict(name="diabetes", points=8),
            model=dict(
                kernel="squared_exponential",
                depth=2,
                width=2,
                widths=(1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
                noise=0.05,
            ),
            sampler=dict(
                copies=(2, 4, 8, 16, 32, 64), chains=6, warmup=400, draws=400, leapfrogs=10
            ),
            train=dict(steps=500),
        )
    )
