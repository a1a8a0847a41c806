"""TempScale in MiniLM on docstrings and code of up to 512 tokens, beside four rivals.

python -m experiments.run --config=configs/retrieval/tempscale_pydocs.py --workdir=runs/tempscale

Needs `make weights`. Nothing is trained. `--config.model.name=run
--config.model.run=runs/contriever` takes the encoder of another run. The least temperature of the
grid is often the chosen one, so that lower ones may do better.

Result: results/tempscale, 21 min 23 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.retrieval.parts import pydocs


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="retrieval.tempscale",
            seed=0,
            data=pydocs(tasks=("docstring_to_code",)),
            model=dict(name="minilm", run=""),
            # Documents that are drawn; each is asked for by its own query.
            documents=dict(validation=120, test=300),
            # What the methods choose from, equally many values each: temperatures, the length that
            # is encoded as before, tokens of a chunk, shrinkage of the covariance.
            candidates=dict(
                tempscale=(0.6, 0.8, 0.9, 1.0),
                last_layer=(0.6, 0.8, 0.9, 1.0),
                log_length=(64.0, 128.0, 256.0, 512.0),
                chunks=(64, 128, 256, 512),
                whitening=(0.2, 0.5, 0.8, 1.0),
            ),
            # In tokens: answers below are short, from there on long.
            short=128,
            long=256,
            edges=(16, 32, 48, 64, 96, 128, 192, 256, 384, 513),
            cuts=(16, 32, 64, 128, 256, 512),
            cut_texts=40,
            filter_texts=6,
            timed=dict(texts=4, repeats=9),  # of encoding, with the temperature and without
            dtype="float32",
            precision="default",
            mesh=parts.mesh(),
            evaluation=dict(max_length=512, query_length=64, batch_tokens=4096),
        )
    )
