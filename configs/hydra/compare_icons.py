"""Hydra beside SimCLR, SupCon and a plain classifier on line icons of 454 concepts.

python -m experiments.run --config=configs/hydra/compare_icons.py --workdir=runs/hydra_icons

Needs `make assets`. Two designers' icons are trained on, options are chosen on the third's, and the
fourth's are the test images: no drawing nor its variants are on two sides. Concepts are the first
words of names and noisy as classes; the test designer has 400 of them.

Temperatures of the losses and the rate of the classifier are those of `tries` alone, which replace
the config's own, as they do one of four rates of each other method.

Result: results/hydra, 13 min 15 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import by_designer, hydra, peers, tries


def get_config() -> ConfigDict:
    augment = parts.warps(degrees=10.0, scale=(0.8, 1.2), shear=10.0)
    for step in augment["order"]:
        augment[step]["fill"] = parts.fill(1.0)  # icons are black on white
    config = parts.pretraining(
        "hydra.compare",
        data=by_designer(
            "icons", "set", train=("mdi", "lucide"), validation=("phosphor",), test=("tabler",),
            label_key="label", classes=454,
        ),
        augment=augment,
        head=dict(hidden=256, features=256),
        train=parts.training(steps=300, eval_every=0, checkpoint_every=300),
        **hydra("drawn", transfer="emoji"),
        **peers(),
    )  # fmt: skip
    config.optimizer.warmup_steps = 20
    config.tries = tries(60)
    return config
