"""Hydra beside SimCLR, SupCon and a plain classifier on 400 emoji in four drawn styles.

python -m experiments.run --config=configs/hydra/compare_emoji.py --workdir=runs/hydra_emoji

Needs `make assets`. A class is an emoji with all its skin tones, of those that all styles have. Two
styles are trained on, options are chosen on the third, and the fourth is the test. The taxonomy
that relations of classes are held against is Unicode's groups.

Temperatures of the losses and the rate of the classifier are those of `tries` alone, which replace
the config's own, as they do one of four rates of each other method.

Result: results/hydra, 6 min 40 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.hydra.parts import by_designer, hydra, peers, tries


def get_config() -> ConfigDict:
    config = parts.pretraining(
        "hydra.relations",
        data=by_designer(
            "emoji", "style", train=("noto", "twemoji"), validation=("fluent",), test=("openmoji",),
            label_key="base", classes=400,
        ),
        augment=parts.crops(32, scale=(0.5, 1.0)),
        head=dict(hidden=256, features=256),
        train=parts.training(steps=300, eval_every=0, checkpoint_every=300),
        **hydra("drawn", transfer="clipart"),
        **peers(),
    )  # fmt: skip
    config.optimizer.warmup_steps = 20
    config.tries = tries(60)
    config.taxonomy = dict(key="label", test=dict(permutations=999))
    return config
