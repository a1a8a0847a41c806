"""Few-shot methods on emoji in four drawn styles: classes are emoji, over splits and encoders.

python -m experiments.run --config=configs/fewshot/compare_emoji.py --workdir=runs/fewshot_emoji

Needs `make assets`. Most emoji have four drawings, one a style. Kinds of 100 and 400 ways draw from
these too, and ask for a drawing's class in other styles. Kinds of 5 and 20 ways need five drawings
a class or more. Under a fifth of the novel classes have them, all of them emoji with skin tones,
mostly of 4 styles by 6 tones. A recoloured twin of a query, of the same emoji and style in another
tone, is then in the support: of about a quarter of the queries at 1 shot, of three quarters at 5,
and of nearly all at 20. Validation episodes of these kinds are alike.

Options of 100 and 400 ways are chosen on 20-way episodes.

Result: results/transductive_clustering, 1 h 12 min a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs import parts as shared
from configs.fewshot import parts


def get_config() -> ConfigDict:
    return parts.splits(
        data=parts.drawings("emoji", label_key="base"),
        classes=dict(base=900, validation=400, novel=500, seed=0),
        augment=shared.crops(32, scale=(0.5, 1.0)),
        # Every drawing of the base classes is trained on.
        train=parts.training(steps=800, eval_every=0, checkpoint_every=400),
        episodes=dict(
            concentration=2.0, validation=30, validation_ways=20, judged="20way_1shot",
            kinds=parts.kinds(
                (20, 1, 4, 150, True), (20, 5, 4, 150, True), (20, 20, 4, 150, False),
                (5, 1, 4, 1000, True), (5, 5, 4, 1000, True), (100, 1, 3, 20, False),
                (400, 1, 2, 5, False),
            ),
        ),
    )  # fmt: skip
