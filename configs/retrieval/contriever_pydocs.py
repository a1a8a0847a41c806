"""Contriever on docstrings and code, from MiniLM's weights.

python -m experiments.run --config=configs/retrieval/contriever_pydocs.py --workdir=runs/contriever

Needs `make weights`. Numbers of steps and tokens were chosen by the time they take, nothing by a
score. MiniLM has seen pairs of docstrings and code in its own training.

Result: results/contriever, 8 min 32 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.contriever()
