"""Fine-tuning of MiniLM on docstrings with their code: random negatives, then hard ones.

python -m experiments.run --config=configs/retrieval/finetune_pydocs.py --workdir=runs/finetune
python -m experiments.run --config=configs/retrieval/finetune_pydocs.py --workdir=runs/finetune_c \
    --config.model.name=run --config.model.run=runs/contriever

Needs `make weights`. The second command starts from an encoder that was pretrained without labels.
"""

from ml_collections import ConfigDict

from configs.retrieval import contriever_pydocs


def get_config() -> ConfigDict:
    config = contriever_pydocs.get_config()
    config.experiment = "retrieval.finetune"
    config.data.update(dict(train="train[:25%]", tasks=("docstring_to_code",)))
    config.tokens = dict(query_length=48, document_length=64)
    for key in ("pairs", "queue", "momentum"):
        del config[key]
    config.loss = dict(temperature=0.05)
    config.negatives = dict(mined=8, hard_share=0.1)
    config.train.update(dict(batch_size=32, steps=100, checkpoint_every=100))
    return config
