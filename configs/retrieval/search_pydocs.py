"""Search the docstrings of this Python installation, or any folder of texts, by typed queries.

python -m experiments.run --config=configs/retrieval/search_pydocs.py --workdir=runs/search
python -m experiments.run --config=configs/retrieval/search_pydocs.py --workdir=runs/search_mine \
    --config.data.name=texts:path/to/folder

Needs `make weights`. The index is built once; the same command answers more queries at once. Of a
folder every text file is read, in passages; `beir:PATH` searches a collection in BEIR's format.
`--config.model.name=run --config.model.run=runs/contriever` takes the encoder of another run.

Result: results/contriever, 4 min 35 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="retrieval.search",
            seed=0,
            data=parts.source("pydocs", split="all", text_key="docstring", source_key="name"),
            model=dict(name="minilm", run="", untrained=False),
            max_length=64,
            k=5,
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
        )
    )
