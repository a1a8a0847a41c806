"""Retrievers of manual pages that a third page names together, by a page's beginning.

python -m experiments.run --config=configs/retrieval/starts_manuals.py \
    --workdir=runs/starts_manuals

Needs `make assets`. The authors' "See also" is the judgement and no part of any text; in Python's
manual it is every link, whose words stay. Pages of the training split are searched and pretrained
on; those that ask are of other splits. Fine-tuning leaves a query's other answers and its own page
out of the negatives.

Width and Contriever's rate are those of `contriever_pydocs_random`, where test queries of
docstrings were seen.

Result: results/contriever, 27 min 39 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.starts(parts.collection("manuals", "related_pages"), labelled="train[:25%]")
