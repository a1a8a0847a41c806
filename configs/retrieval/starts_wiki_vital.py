"""Retrievers of Wikipedia's introductions by Wikidata's descriptions of articles.

python -m experiments.run --config=configs/retrieval/starts_wiki_vital.py \
    --workdir=runs/starts_wiki_vital

Needs `make assets`. Different people wrote the two; words of the title are left out of the
introduction. Only introductions are pretrained on; queries are of unseen articles.

Width and Contriever's rate are those of `contriever_pydocs_random`, where test queries of
docstrings were seen.

Result: results/contriever, 23 min 34 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.starts(
        parts.collection("wiki_vital", "description_to_text"), labelled="train[:25%]"
    )
