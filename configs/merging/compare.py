"""Methods of merging on a bed of eight experts, ranked under one budget.

python -m experiments.run --config=configs/merging/compare.py --workdir=runs/merging

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own, about six minutes of one CPU core; the
rest takes some four. Result: results/task_arithmetic.
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed(
        "merging.compare",
        bed=dict(run=""),
        # Candidates that each way may judge on validation images; what is learned judges its rates.
        search=dict(tries=10),
        methods=parts.methods(),
        dropped=dict(rate=0.9),
        fisher=dict(examples=256, classes=10),
        mask=dict(
            scale=0.3, temperature=0.5, inner_rate=0.1, steps=60, batch_size=8,
            learning_rates=(3e-3, 1e-2, 3e-2),
        ),
        # Training images of each task at most, whose labels are not read.
        twin=dict(fraction=0.1),
        router=dict(most=1000, epochs=50, batch_size=256, learning_rate=5e-4),
        decay=0.1,  # of coefficients
        addition=dict(steps=60, batch_size=8, rates=(3e-3, 0.01, 0.03)),
    )  # fmt: skip
