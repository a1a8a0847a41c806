"""Fusion by transport of vision transformers on images of clothes, and of BERTs on code.

python -m experiments.run --config=configs/merging/ot_fusion.py --workdir=runs/ot_fusion

Needs the archive `fashion_mnist` (`make assets`) and ott-jax. In a first run soft fusion was far
above the plain average on test images, and uniform transport and units out of their places were
too: of images no claim is on the plain average alone. After it the wide model was made twice as
wide as the narrow one. Weights of the entropy were 0.01 to 0.16 at first; validation images chose
an end of them, so that they reach further now.

Result: results/ot_fusion, 8 min 5 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="merging.ot_fusion",
            seed=0,
            data=parts.images(
                "fashion_mnist", (28, 28, 1), train="train[:20%]", validation="train[90%:92%]",
                test="test[:30%]",
            ),
            augment=dict(exchange=False, order=()),
            model=dict(
                name="vit_ti", width=64, depth=4, heads=4, patch_size=7, pooling="gap",
                positions="learned", classes=10,
            ),
            wide=dict(width=128, heads=8),  # twice the narrow models' width
            loss=dict(smoothing=0.0),
            optimizer=parts.optimizer(learning_rate=2e-3, warmup_steps=50, weight_decay=0.05),
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
            train=parts.training(
                steps=600, batch_size=64, eval_every=0, log_every=50, checkpoint_every=600
            ),
            evaluation=dict(batch_size=500),
            # Inputs that units are compared on, and weights of the entropy to choose from.
            alignment=dict(examples=200, regs=(0.0025, 0.01, 0.04, 0.16, 0.64)),
            line=dict(points=11),
            tuning=dict(steps=60, warmup_steps=6, rates=(3e-4, 1e-3, 3e-3)),
            language=dict(
                data=parts.source(
                    "pydocs", train="train[:10%]", validation="validation[:30%]",
                    test="test[:30%]",
                ),
                text=dict(vocabulary=512, length=32, windows=512),
                model=dict(width=64, depth=2, heads=4, mlp=256),
                masking=dict(rate=0.15),
                optimizer=parts.optimizer(
                    learning_rate=2e-3, warmup_steps=60, weight_decay=0.01
                ),
                train=parts.training(
                    steps=600, batch_size=64, eval_every=0, log_every=50, checkpoint_every=600
                ),
            ),
        )
    )  # fmt: skip
