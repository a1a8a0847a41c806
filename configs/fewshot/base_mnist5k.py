"""Base training on handwritten digits: classes 0 to 4; novel classes 5 to 9.

python -m experiments.run --config=configs/fewshot/base_mnist5k.py --workdir=runs/base_mnist5k

There are too few classes for validation classes: options are chosen on the test split's images of
the base classes, which training does not see. Images of the novel classes are used by no choice.

Result: results/transductive_clustering, 34 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    return parts.base()
