"""Risk of random-feature attention beyond its kernel limit's, against heads and examples.

python -m experiments.run --config=configs/attention/excess.py --workdir=runs/excess

No data are needed, inputs are drawn from the sphere. Nothing was tuned but the penalty, by
leave-one-out error.

Result: results/rf_attention, 4 min 21 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.excess",
            seed=0,
            precision="highest",
            d=8,
            num_keys=4,
            heads=(4, 16, 64, 256, 1024),
            scale=0.5,
            noise=0.3,  # deviation of the training targets' noise; that of the targets is 1
            sizes=(128, 256, 512, 1024),
            test=1000,
            replicates=8,
            draws=2,  # of the heads
            # As shares of the kernel's mean diagonal.
            regularizations=(1e-3, 1e-2, 1e-1, 1.0),
        )
    )
