"""Multilevel training of a small BERT on docstrings and code, windows of 32 tokens.

python -m experiments.run --config=configs/merging/multilevel_bert_pydocs.py \
    --workdir=runs/multilevel_bert

Every arm has the FLOPs of 800 steps of the full model. Learning rates are those of `cycle.rates`,
which validation chooses among, and warm-ups are `cycle.before`: those of `optimizer` are not read.

Result: results/multilevel, 36 min 18 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.merging.parts import cycle


def get_config() -> ConfigDict:
    config = ConfigDict(
        dict(
            **parts.small_lm(
                "merging.multilevel", width=64, mlp=256, learning_rate=2e-3, warmup_steps=40,
                steps=800, depth=4, length=32,
            ),
            masking=dict(rate=0.15),
            cycle=cycle(),
        )
    )  # fmt: skip
    del config.model.kv_heads
    config.text.update(dict(vocabulary=512, windows=256))
    config.train.update(dict(batch_size=32, log_every=40, checkpoint_every=800))
    config.optimizer.update(dict(schedule="warmup_linear", weight_decay=0.01))
    return config
