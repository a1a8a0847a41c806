"""One-for-All on 1,000 images of clothes: a ConvNet, a ViT and a Mixer teach one another.

python -m experiments.run --config=configs/distillation/ofakd.py --workdir=runs/ofakd

Needs the archive of Fashion-MNIST, `make assets`. Teachers have 10,000 images of their own; those
of an earlier run are taken with `--config.teaching.run=RUN`. Options of all sides are chosen on
1,000 training images by the run itself. One run of fewer sides was looked at before DKD's weights
were set: with 8 for the other classes it was far below all else. One run of other sides chose the
least of the weights of CC and CRD, and CRD was far below all else. Students then had a quarter of
the steps, see configs/distillation/compare.py. Some thirty minutes of one CPU core. Result:
results/ofakd.
"""

from ml_collections import ConfigDict

from configs.distillation import parts


def get_config() -> ConfigDict:
    gammas = (1.0, 1.5, 2.0)
    tries = parts.tries() | dict(
        rkd=dict(rkd=(0.04, 0.2, 1.0)),
        hard=dict(exits=(0.3, 1.0, 3.0)),
        **{side: dict(gamma=gammas) for side in ("paper", "normalized", "rising")},
    )
    for term in ("rkd_distance", "rkd_angle"):  # RKD has both
        del tries[term]
    return ConfigDict(
        parts.families(
            experiment="distillation.ofakd",
            tries=tries,
            compared=500,  # test images on which stages are compared
        )
    )
