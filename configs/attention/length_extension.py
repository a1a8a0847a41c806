"""E²-LLM: a small language model of 128 tokens extended to 2,048, beside nine other ways.

python -m experiments.run --config=configs/attention/length_extension.py --workdir=runs/e2llm

Needs the data set sotu (`make assets`). Nothing was tuned but scales, on validation speeches by the
run itself.

A window of training is a token longer than what the model reads of it, all but its last. So a scale
of 1 leaves room for an offset of 0 or 1. AdamW has its usual second rate of decay, 0.999, where the
paper has 0.95.

Result: results/e2llm, 22 min 24 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.length_extension",
            seed=0,
            seeds=1,
            mesh=parts.mesh(),
            precision="default",
            data=parts.source("sotu", train="train", validation="validation", test="test"),
            text=dict(vocabulary=2048, length=128, windows=64),
            model=dict(width=128, depth=4, heads=4, mlp=384),
            optimizer=parts.optimizer(learning_rate=2e-3, warmup_steps=50),
            train=dict(
                steps=900, batch_size=16, log_every=25, eval_every=300, checkpoint_every=300
            ),
            extension=dict(
                steps=152,
                learning_rate=5e-4,
                warmup_steps=15,
                largest=16,  # of the scales, and PoSE's
                fewer=4,  # times fewer tokens that the method sees in one more training
                one_scale=2,  # of the ablation
                long=8,  # windows of the interpolation that is trained on long ones
            ),
            long=dict(
                multiples=(1, 2, 4, 8, 16),  # of text.length
                scales=(1, 2, 4, 8, 16, 24),
                validation=4,  # texts
                test=12,
            ),
        )
    )
