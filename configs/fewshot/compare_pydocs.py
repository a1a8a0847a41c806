"""Few-shot classification of docstrings by MiniLM's features: which module is a function of?

python -m experiments.run --config=configs/fewshot/compare_pydocs.py --workdir=runs/fewshot_pydocs

Needs `make weights`. Classes are modules with at least 20 docstrings; those of the episodes are in
splits that differ by module. Options are chosen on the validation modules.

Result: results/transductive_clustering, 3 min 23 s a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.fewshot.parts import compare


def get_config() -> ConfigDict:
    untrained = ("augment", "classes", "head", "loss", "model", "optimizer", "train")
    config = compare(
        # The mean of `base` centres the features.
        data=parts.source("pydocs", base="train[:25%]", validation="validation", novel="test"),
        episodes=dict(count=1000, validation=200),
        text=dict(
            encoder="minilm", text_key="docstring", label_key="module", min_examples=20,
            max_examples=40, max_length=128,
        ),
        **dict.fromkeys(untrained),
    )  # fmt: skip
    config.features.of = "text"
    return config
