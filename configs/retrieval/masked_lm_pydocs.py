"""A masked language model of docstrings and code, for Contriever and fine-tuning to start from.

python -m experiments.run --config=configs/retrieval/masked_lm_pydocs.py --workdir=runs/masked_lm
python -m experiments.run --config=configs/retrieval/contriever_pydocs.py \
    --workdir=runs/contriever_masked_lm --config.model.name=run --config.model.run=runs/masked_lm

The second command starts from it. Its learning rate was not chosen by a score; its width is that of
`contriever_pydocs_random`, where test queries were seen.

Result: results/contriever, 15 min 0 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.masked_lm()
