"""Methods of merging ranked on a bed of eight experts on texts, on the same validation texts.

python -m experiments.run --config=configs/merging/compare_texts.py --workdir=runs/merging_texts

Needs what `configs/merging/bed_texts.py` needs. With `--config.bed.run=runs/bed_texts` it reads the
experts of that run; without, as here, it trains its own.

Result: results/task_arithmetic, 31 min 31 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.merging import parts


def get_config() -> ConfigDict:
    # Fewer steps and examples than on images: a text costs more operations than a small image.
    learned = dict(steps=20, batch_size=4)
    own = parts.comparison()
    own["methods"]["adamerging"].update(learned)
    own["mask"].update(learned)
    own["addition"].update(learned)
    own["fisher"].update(examples=64)
    return parts.text_bed("merging.compare", **own)
