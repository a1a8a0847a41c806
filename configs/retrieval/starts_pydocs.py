"""Retrievers of code by docstring, from random and from a masked language model.

python -m experiments.run --config=configs/retrieval/starts_pydocs.py \
    --workdir=runs/starts_pydocs

Docstring and code are one document of the texts that are pretrained on. Pairs of one in ten modules
are labelled; queries are of unseen modules.

Width and Contriever's rate are those of `contriever_pydocs_random`, where test queries of
docstrings were seen.

Result: results/contriever, 31 min 31 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.starts(parts.pydocs(tasks=("docstring_to_code",)), labelled="train[:10%]")
