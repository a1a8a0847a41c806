"""Few-shot methods on characters in many fonts: 240 base, 80 validation and 80 novel characters.

python -m experiments.run --config=configs/fewshot/compare_glyphs.py --workdir=runs/fewshot_glyphs

Over splits of the characters and encoders. Claims are about episodes of 20 ways since those of 5
are nearly all solved, as was seen before. A character has 12 to 16 images. Of imbalanced queries at
1 shot few classes are too small for their share; at 5 shots too many would be.
`--cpu_devices=2` shares the episodes out over two cores.

Result: results/transductive_clustering, 20 min 4 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    episodes = dict(
        concentration=2.0, validation=100, judged="20way_1shot",
        # 20-way episodes cost ten times a 5-way one.
        kinds=parts.kinds(
            (20, 1, 7, 500, True), (20, 5, 7, 500, False),
            (5, 1, 7, 1000, True), (5, 5, 7, 1000, False),
        ),
    )  # fmt: skip
    return parts.splits(**parts.glyphs() | dict(episodes=episodes))
