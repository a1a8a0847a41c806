"""Retrievers of Debian's package descriptions by synopsis, from random and masked LM.

python -m experiments.run --config=configs/retrieval/starts_debian.py \
    --workdir=runs/starts_debian

Needs `make assets`. Both texts are the maintainer's, the package's own name is left out. Only
descriptions are pretrained on; synopses are the queries of unseen source packages.

Width and Contriever's rate are those of `contriever_pydocs_random`, where test queries of
docstrings were seen.

Result: results/contriever, 32 min 49 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.starts(
        parts.collection("debian", "synopsis_to_description"), labelled="train[:10%]"
    )
