"""Fisher merging on a bed of eight experts: ensembling, robustness, few labels, eight tasks.

python -m experiments.run --config=configs/merging/fisher_merging.py --workdir=runs/fisher_merging

Needs the archive `fashion_mnist` (`make assets`). With `--config.bed.run=runs/bed` it reads the
experts of that run; without, as here, it trains its own.

Result: results/fisher_merging, 16 min 23 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.bed(
        "merging.fisher_merging",
        bed=dict(run=""),
        # The ten likeliest classes: all of those of three tasks.
        fisher=dict(examples=256, classes=10),
        search=dict(tries=20),
        methods=parts.methods(),
        ensembling=dict(task="fashion", models=5, steps=150),
        # Validation accuracy as a share of the fine-tuned model's; shifts of its test images.
        robust=dict(
            task="mnist5k", other="digits", points=21, least=0.99, most=500, degrees=30.0,
            blur=1.2, noise=0.4,
        ),
        transfer=dict(
            targets=("digits", "fashion", "greek"), shots=3, steps=100, batch_size=16, points=11
        ),
    )  # fmt: skip
