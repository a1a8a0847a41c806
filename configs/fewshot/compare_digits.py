"""Few-shot methods on scikit-learn's 8x8 digits: base classes 0 to 4, novel classes 5 to 9.

python -m experiments.run --config=configs/fewshot/compare_digits.py --workdir=runs/fewshot_digits

Options are chosen on held-out images of the base classes.

Result: results/transductive_clustering, 2 min 53 s a run on 1 x cpu.
"""

from ml_collections import ConfigDict

from configs.fewshot import parts


def get_config() -> ConfigDict:
    return parts.compare(**parts.digits(), episodes=dict(count=2000, validation=200))
