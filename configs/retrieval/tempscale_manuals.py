"""TempScale in a paraphrase model of three layers, on pages of manuals, beside four rivals.

python -m experiments.run --config=configs/retrieval/tempscale_manuals.py \
    --workdir=runs/tempscale_manuals

Needs `make weights` and `make assets`. Nothing is trained. A page of up to 1,500 characters is
found by the beginning of another that a third one names together with it; few pages are short.
The documents of the choice are no part of those of the test.

Result: results/tempscale, 10 min 41 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.retrieval import parts


def get_config() -> ConfigDict:
    return parts.tempscale(
        data=parts.collection("manuals", "related_pages"),
        model=dict(name="minilm_l3", run=""),
        # Documents that are drawn; who asks for any of them asks.
        documents=dict(validation=200, test=500),
        short=256,  # fewer than twenty pages that are asked for are below 128 tokens
        edges=(48, 64, 96, 128, 192, 256, 320, 384, 513),
        cuts=(16, 32, 64, 128, 256),
    )
