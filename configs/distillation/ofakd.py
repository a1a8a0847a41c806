"""One-for-All on 1,000 images of clothes: a ConvNet, a ViT and a Mixer teach one another.

python -m experiments.run --config=configs/distillation/ofakd.py --workdir=runs/ofakd

Needs the archive of Fashion-MNIST, `make assets`. Teachers have 10,000 images of their own. Options
of all sides are chosen on 1,000 training images by the run itself. Twelve minutes of one CPU core.
Not run over seeds here. One run of fewer sides was looked at before DKD's weights were set: with 8
for the other classes it was nine points below all else. One run of all sides chose the least of the
weights of CC and CRD, and CRD was eight points below all else.
"""

from ml_collections import ConfigDict

from configs.distillation import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        parts.families(
            experiment="distillation.ofakd",
            tries=parts.tries()
            | dict(hard=dict(exits=(0.3, 1.0, 3.0)), paper=dict(gamma=(1.0, 1.5, 2.0))),
            compared=500,  # test images on which stages are compared
        )
    )
