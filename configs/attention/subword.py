"""Vocabularies of sub-words of docstrings and code: 512 to 4,096 pieces by six searches.

python -m experiments.run --config=configs/attention/subword.py --workdir=runs/subword

Needs the package tokenizers (`pip install --constraint constraints.txt -e '.[pretrained]'`). The
seed splits documents into those that are learned from and those that are held out; nothing was
tuned.

Result: results/generative_maths, 2 min 59 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="attention.subword",
            seed=0,
            precision="default",
            data=parts.source("pydocs", train="train[:10%]"),
            share=0.8,  # of the documents, to learn from
            held_out=300,  # documents at most
            sizes=(512, 1024, 2048, 4096),  # pieces, characters included
            claimed=2048,
            tolerance=1e-5,  # share of the likelihood that another round must add
            toys=dict(
                number=6,
                words=4,
                longest=7,  # characters of a word
                pieces=3,  # beyond the characters
                seconds=60.0,  # for each exact program
            ),
        )
    )
