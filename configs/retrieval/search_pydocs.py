"""Search the docstrings of this Python installation, or any folder of texts, by typed queries.

python -m experiments.run --config=configs/retrieval/search_pydocs.py --workdir=runs/search
python -m experiments.run --config=configs/retrieval/search_pydocs.py --workdir=runs/search_mine \
    --config.data.name=texts:path/to/folder

Needs `make weights`. The index is built once; the same command answers more queries at once. Of a
folder every text file is read, in passages; `beir:PATH` searches a collection in BEIR's format.
`--config.model.name=run --config.model.run=runs/contriever` takes the encoder of another run.
Measured on 2 CPU cores: 21,198 documents encoded in 3 minutes; then 11 ms a query, those of a new
length half a second more, to compile. Asked for by the first eighth of its words, which hold its
name, a document is first in 90% of 500 cases.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="retrieval.search",
            seed=0,
            data=dict(
                name="pydocs",
                split="all",
                text_key="docstring",
                source_key="name",
                data_dir=config_dict.placeholder(str),
            ),
            model=dict(name="minilm", run=""),
            max_length=64,
            k=5,
            dtype="float32",
            mesh=dict(replica=1, data=-1, fsdp=1, model=1),
        )
    )
