"""Few-shot methods on line icons of 454 concepts by four designers, over splits and encoders.

python -m experiments.run --config=configs/fewshot/compare_icons.py --workdir=runs/fewshot_icons

Needs `make assets`. Concepts are the first words of names and noisy as classes. The smallest has
two icons, 81 have forty or more.

Result: results/transductive_clustering, 40 min 40 s a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs import parts as shared
from configs.fewshot import parts


def get_config() -> ConfigDict:
    config = parts.splits(
        data=parts.drawings("icons", label_key="label"),
        classes=dict(base=204, validation=120, novel=130, seed=0),
        augment=shared.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0),
        # Every drawing of the base classes is trained on.
        train=parts.training(steps=800, eval_every=0, checkpoint_every=400),
        episodes=dict(
            concentration=2.0, validation=30, validation_ways=20, judged="20way_1shot",
            kinds=parts.kinds(
                (20, 1, 5, 150, True), (20, 5, 5, 150, True), (20, 20, 5, 150, True),
                (5, 1, 10, 1000, True), (5, 5, 10, 1000, True), (100, 1, 2, 20, False),
            ),
        ),
    )  # fmt: skip
    for step in config.augment.order:
        config.augment[step].fill = 1.0  # icons are black on white
    return config
