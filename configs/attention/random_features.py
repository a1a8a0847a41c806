"""Random-feature attention beside MLP features: 16 keys of 16 coordinates, 1,000 heads.

python -m experiments.run --config=configs/attention/random_features.py --workdir=runs/rf

No data are needed, inputs are drawn from the sphere. After arXiv:2307.11353, of which the abstract
alone was read: dimensions, heads, numbers of examples, the weights' scale of 1/2, the targets'
mixture and the penalties are this repository's. Expected: the ratio of examples needed grows as
(keys + 1)^degree, this repository's count of polynomials.

Result: results/rf_attention, 4 min 5 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.random_features",
            seed=0,
            precision="highest",
            d=16,
            num_keys=16,
            heads=1000,
            blocks=10,  # in which features are computed
            scale=0.5,
            targets=(
                "average_1", "average_2", "average_4", "weighted_1", "weighted_3",
                "mixed_0_2", "mixed_0.5_2", "mixed_1_2",
            ),
            sizes=(500, 1000, 2000, 4000),
            test=1000,
            replicates=3,
            # The one of least leave-one-out error is taken.
            regularizations=(1e-3, 1e-1),
            scaling=dict(
                d=8,
                num_keys=(2, 4, 8),
                degrees=(1, 2),
                sizes=dict(
                    rfa=(8, 16, 32, 64, 128, 256, 512, 1024),
                    rf_mlp=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
                ),
                test=1000,
                replicates=3,
                regularization=1e-4,  # of the kernel's mean diagonal
                level=0.25,  # relative error to be reached
            ),
            limit=dict(d=16, num_keys=16, examples=64, heads=(16, 64, 256, 1024), replicates=200),
        )
    )  # fmt: skip
