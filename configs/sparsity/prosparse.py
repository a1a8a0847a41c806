"""ProSparse in a small model of docstrings and code: 16 continued trainings of one base model.

python -m experiments.run --config=configs/sparsity/prosparse.py --workdir=runs/prosparse

Needs the data set sotu (`make assets`). All variants train with one learning rate, which was not
chosen by a score; the method's last factor and threshold were chosen on validation windows by the
run itself. A first run with last factors of 0.25 to 4 had fewer zeros than is claimed; these
factors are larger.

Result: results/prosparse, 8 min 21 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    small = parts.small_lm(
        "sparsity.prosparse",
        width=64,
        mlp=256,
        depth=4,
        length=128,
        learning_rate=4e-3,
        warmup_steps=30,
        steps=400,
    )
    small["model"]["activation"] = "silu"  # of the base model
    return ConfigDict(
        dict(
            **small,
            other=parts.source("sotu", test="test"),  # prose, which is read alone
            continued=dict(steps=200, learning_rate=1e-3, warmup_steps=10),
            # A variant's last factor, the form of its stages, and whether it is the gate's.
            penalty=dict(peak=0.0, sine=1.0, linear=0.0, constant=0.0, gate=0.0),
            # Of the steps: first ones without a penalty, ends of stages; factors over the last.
            # Those of the paper's 7B model.
            stages=dict(
                start=0.3,
                ends=(0.364, 0.606, 0.727, 0.97, 1.0),
                shares=(0.025, 0.25, 0.25, 1.0, 1.0),
            ),
            peaks=(1.0, 2.0, 4.0, 8.0, 16.0),
            thresholds=(0.0, 0.01, 0.02, 0.05, 0.1),
            shift=0.1,
            # Training windows; live where the probability is at least `least`.
            predicted=dict(
                windows=128, rank=16, steps=300, learning_rate=0.01, batch_size=256, least=0.3
            ),
            timing=dict(wide=(8192, 2048), narrow=(1536, 576), repeats=20),
        )
    )
