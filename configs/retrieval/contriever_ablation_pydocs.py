"""Contriever's choices one at a time: pairs, corruption, queue, momentum, negatives.

python -m experiments.run --config=configs/retrieval/contriever_ablation_pydocs.py \
    --workdir=runs/contriever_ablation

Measured (seed 0, 21 minutes on 2 CPU cores): crops are 0.052 of nDCG@10 above inverse cloze (95%
interval 0.034 to 0.069); WORKSPACE.md has the table.
"""

from ml_collections import ConfigDict

from configs.retrieval import contriever_pydocs_random


def get_config() -> ConfigDict:
    config = contriever_pydocs_random.get_config()
    config.experiment = "retrieval.ablation"
    config.data.update(dict(validation="validation[:20%]", tasks=("docstring_to_code",)))
    config.train.update(dict(steps=400, checkpoint_every=400))
    # Each is the config above but for one value.
    config.variants = dict(
        inverse_cloze="pairs.name=inverse_cloze",
        no_corruption="pairs.corruption=none",
        mask="pairs.corruption=mask",
        replace="pairs.corruption=replace",
        queue_256="queue.size=256",
        queue_8192="queue.size=8192",
        momentum_0_9="momentum.start=0.9",
        momentum_0_999="momentum.start=0.999",
        in_batch="loss.negatives=batch",
    )
    return config
