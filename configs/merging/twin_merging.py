"""Twin-merging on a bed of eight experts: one command trains them, merges, learns the router.

python -m experiments.run --config=configs/merging/twin_merging.py --workdir=runs/twin_merging

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own. Shared expert, vectors and router are
saved in the run's directory `twin`, which `rml.merging.load_twin` reads and `predict` of it
applies. Encoders of one's own are merged so by `python -m experiments.merge` with `--method=twin`.

Result: results/twin_merging, 10 min 45 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed(
        "merging.twin_merging",
        bed=dict(run=""),
        search=dict(tries=20),
        methods=parts.methods(),
        # The share of singular values that is kept, and those of the figure.
        twin=dict(fraction=0.1, fractions=(0.02, 0.05, 0.1, 0.2, 0.5)),
        # Training images of each task at most; batches are small, as there are few.
        router=dict(most=1000, epochs=50, batch_size=256, learning_rate=5e-4),
        counts=(2, 4),
        unseen=("cyrillic", "digits"),
        timing=dict(batch_size=64, repeats=30),
    )  # fmt: skip
