"""Few-shot methods on emoji by features of EfficientNet-Lite0 (ImageNet), nothing being trained.

python -m experiments.run --config=configs/fewshot/compare_emoji_pretrained.py --workdir=runs/emoji

Needs `make assets` and `make weights`. Most classes are in the episodes of 100 and 400 ways. Those
of 20 ways need five drawings a class or more, which only emoji with skin tones have, under a fifth
of the novel classes. Queries of 20 ways have recoloured twins in the support as often as in
`compare_emoji`: three quarters at 5 shots, nearly all at 20. The base classes' features centre the
others. Options of 100 and 400 ways are chosen on 20-way episodes.

Result: results/transductive_clustering, 2 h 5 min a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs import parts as shared
from configs.fewshot import parts


def get_config() -> ConfigDict:
    untrained = ("augment", "head", "loss", "model", "optimizer", "train")
    splits = dict.fromkeys(("base", "held_out", "validation", "novel"), "all")
    config = parts.splits(
        data=shared.images("emoji", (64, 64, 3), **splits, label_key="base"),
        classes=dict(base=300, validation=400, novel=1100, seed=0),
        episodes=dict(
            concentration=2.0, validation=30, validation_ways=20, judged="20way_1shot",
            kinds=parts.kinds(
                (20, 1, 4, 150, True), (20, 5, 4, 150, True), (20, 20, 4, 150, False),
                (100, 1, 3, 20, False), (400, 1, 3, 5, False),
            ),
        ),
        **dict.fromkeys(untrained),
    )  # fmt: skip
    config.features.update(of="run", run="weights:efficientnet_lite0")
    return config
