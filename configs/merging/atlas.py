"""aTLAS on a bed of eight experts: coefficients of blocks, learned from little data.

python -m experiments.run --config=configs/merging/atlas.py --workdir=runs/atlas

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own. In a first run, whose test images were
seen, a claim on tasks taken away was restated. Encoders of one's own are merged so by `python -m
experiments.merge` with `--method=atlas`.

Result: results/atlas, 11 min 29 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed(
        "merging.atlas",
        bed=dict(run=""),
        search=dict(tries=10),
        methods=parts.methods(),
        decay=0.1,  # of coefficients
        # Images of each task in a batch; `budget` is the share of blocks that are selected, by
        # slopes on `looked_at` images.
        addition=dict(steps=60, batch_size=8, rates=(0.01, 0.03), budget=0.25, looked_at=512),
        # Half of a batch is the target's; `control` is the share of the base's accuracy that the
        # other tasks keep; multiples go up to `farthest`, as many of the plain vector as are said.
        negation=dict(
            targets=("digits", "fashion"), steps=40, batch_size=64, rates=(0.01, 0.03), most=100,
            control=0.95, farthest=2.0, multiples=40,
        ),
        # Two tries for each way.
        few=dict(
            targets=("digits", "fashion", "greek"), shots=(1, 4, 16), steps=30, batch_size=32,
            probe_steps=100,
            rates=dict(
                atlas=(0.03, 0.1), lora=(1e-2, 3e-2), full=(1e-4, 1e-3), probe=(1e-3, 1e-2),
                cache=(0.5, 2.0),
            ),
        ),
        # A quarter of a batch is trusted.
        test_time=dict(steps=30, batch_size=32, rates=(0.01, 0.03), threshold=0.9),
        # Parts of each block, by which coefficients are about as many as the adapters' parameters;
        # further numbers of parts; the share of the images. Batches and rates are those of `few`,
        # steps more than a pass of all images.
        parts=dict(target="fashion", count=3, counts=(2, 16), share=0.1, steps=100),
    )  # fmt: skip
