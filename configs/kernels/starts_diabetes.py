"""A deep kernel machine's optimum from 50 random starts, beside the modes of a network.

python -m experiments.run --config=configs/kernels/starts_diabetes.py --workdir=runs/starts

Nothing was tuned.

Result: results/dkm, 29 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.starts",
            seed=0,
            precision="highest",
            data=dict(name="diabetes", points=20),
            model=dict(
                kernel="squared_exponential", depth=2, width=5, widths=(2, 5, 20), noise=0.05
            ),
            train=dict(starts=50, spread=0.5, steps=1000, tolerance=1e-6),
        )
    )
