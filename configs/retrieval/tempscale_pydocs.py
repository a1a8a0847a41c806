"""TempScale in MiniLM on docstrings and code of up to 512 tokens, beside four rivals.

python -m experiments.run --config=configs/retrieval/tempscale_pydocs.py --workdir=runs/tempscale

Needs `make weights`. Nothing is trained. `--config.model.name=run
--config.model.run=runs/contriever` takes the encoder of another run. Temperatures were 0.6 to 1
in a first measurement, on fewer documents, which chose the least of them for two seeds of three.

Result: results/tempscale, 16 min 47 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.tempscale(
        data=parts.pydocs(tasks=("docstring_to_code",)),
        # Documents that are drawn; each is asked for by its own query.
        documents=dict(validation=300, test=600),
    )
