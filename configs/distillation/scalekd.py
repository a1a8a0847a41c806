"""ScaleKD and One-for-All on 1,000 images of clothes: a ConvNet learns from a ViT.

python -m experiments.run --config=configs/distillation/scalekd.py --workdir=runs/scalekd

Needs the archive of Fashion-MNIST, `make assets`. The ViT has 50,000 images of its own; that of an
earlier run is taken with `--config.teaching.run=RUN`. Rates, steps and weights of losses were set
by two seeds on validation images.

Result: results/scalekd, 46 min 30 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.distillation.parts import convnet, vit


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="distillation.scalekd",
            seed=0,
            seeds=16,
            tuning_seeds=2,
            classes=10,
            data=parts.images(
                "fashion_mnist", (28, 28, 1), train="train[:1000]",
                validation="train[1000:6000]", teacher="train[10000:60000]", test="test",
            ),
            augment=dict(exchange=False, order=()),
            teachers=dict(vit=vit(48, 3)),
            teaching=dict(
                run="",  # an earlier run of the recipe, whose teacher is taken
                optimizer=parts.optimizer(learning_rate=3e-3, warmup_steps=100),
                train=parts.training(
                    steps=2500, batch_size=100, eval_every=0, checkpoint_every=2500
                ),
            ),
            student=convnet(8, 16, 32, features=32),
            kind="plain",  # what stands at the student, see KINDS
            path=dict(blocks=1),  # last blocks of the teacher that projected tokens pass
            projectors=dict(heads=4),
            exits=dict(width=48, grid=2, heads=4),  # of One-for-All's students
            loss=dict(smoothing=0.0),  # of the teacher
            # Weights of losses, and their numbers. Views have the public code's weights, for a mean
            # over positions. own=0.0 gives an image what the teacher says of another; again=1.0 is
            # another seed; images are those that the student learns from.
            given=dict(
                own=1.0, again=0.0, images=1000.0, label=1.0, smoothing=0.0, kd=0.0,
                temperature=1.0, fitnet=0.0, ofa=0.0, hard=0.0, gamma=1.0, strength=0.0,
                direct=3.92, alternative=2.94, path=1.0, scale=5.0,
            ),
            compared=1,
            optimizer=parts.optimizer(learning_rate=1.2e-2, warmup_steps=20, weight_decay=1e-2),
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
            train=parts.training(
                steps=480, batch_size=32, eval_every=0, log_every=80, checkpoint_every=480
            ),
            evaluation=dict(batch_size=1000),
        )
    )  # fmt: skip
