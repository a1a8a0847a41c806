"""Concrete subspaces on a bed of eight experts: a mask learned from half of the test images.

python -m experiments.run --config=configs/merging/concrete_subspace.py \
    --workdir=runs/concrete_subspace

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own. A claim that a mask gains as much on other
images as on those that it was learned from was dropped: a mask of eight images met it too, in two
measurements.

Result: results/concrete_subspace, 12 min 44 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed(
        "merging.concrete_subspace",
        bed=dict(run=""),
        search=dict(tries=20),
        methods=parts.methods(),
        # The rate is the best of four on validation images; images of each task in a batch.
        mask=dict(
            scale=0.3, temperature=0.5, inner_rate=0.1, steps=100, batch_size=8,
            learning_rates=(3e-3, 1e-2, 3e-2, 1e-1), draws=5,
        ),
        unseen=("cyrillic", "digits"),
    )  # fmt: skip
