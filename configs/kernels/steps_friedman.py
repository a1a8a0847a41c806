"""How many gradients a full deep kernel machine of up to 2,100 points needs.

python -m experiments.run --config=configs/kernels/steps_friedman.py --workdir=runs/steps

Depth, kernel and noise of the data are those of `learning_friedman`. Of `model.points` points each
side chooses among eight: the machine pairs of ν and noise, the NNGP noises. What is chosen replaces
`model.width` and `model.noise`.

Result: results/dkm, 28 min 0 s a run on 1 x cpu (Intel(R) Xeon(R) Processor, 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="kernels.steps",
            seed=0,
            precision="highest",
            data=dict(sizes=(250, 500, 1000, 2100), validation=1000, test=2000, noise=1.0),
            model=dict(
                kernel="squared_exponential",
                depth=2,
                width=10.0,
                noise=0.05,
                widths=(30.0, 100.0, 300.0, 1000.0),
                noises=(0.025, 0.05),
                nngp_noises=(0.0063, 0.0125, 0.018, 0.025, 0.035, 0.05, 0.1, 0.2),
                points=800,
            ),
            # Nats a point that count as near, and steps of a machine whose targets are shuffled.
            train=dict(steps=20, memory=10, within=0.001, shuffled_steps=10),
        )
    )
