"""Fine-tuning of MiniLM on docstrings with their code: random negatives, then hard ones.

python -m experiments.run --config=configs/retrieval/finetune_pydocs.py --workdir=runs/finetune
python -m experiments.run --config=configs/retrieval/finetune_pydocs.py --workdir=runs/finetune_c \
    --config.model.name=run --config.model.run=runs/contriever

Needs `make weights`. The second command starts from an encoder that was pretrained without labels.

Result: results/contriever, 26 min 32 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.contriever(
        experiment="retrieval.finetune",
        data=parts.pydocs(train="train[:25%]", tasks=("docstring_to_code",)),
        tokens=dict(query_length=48, document_length=64),
        loss=dict(temperature=0.05),
        negatives=dict(mined=8, hard_share=0.1, exchange=False),
        train=parts.training(batch_size=32, steps=100, log_every=5, checkpoint_every=100),
        **dict.fromkeys(("pairs", "queue", "momentum")),
    )
