"""Examples that attention and an MLP need for targets of degree 1 to 4, of one to three keys.

python -m experiments.run --config=configs/attention/degrees.py --workdir=runs/degrees

No data are needed, inputs are drawn from the sphere; nothing was tuned but for the sizes, which one
small form showed too few.

Result: results/rf_attention, 3 min 24 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.degrees",
            seed=0,
            precision="highest",
            scaling=dict(
                d=3,
                num_keys=(1, 2, 3),
                degrees=(1, 2, 3, 4),
                sizes=dict(
                    rfa=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
                    rf_mlp=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
                ),
                test=1000,
                replicates=8,
                regularization=1e-4,  # of the kernel's mean diagonal
                level=0.5,  # relative error to be reached
            ),
        )
    )
