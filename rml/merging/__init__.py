"""Merging of models that were fine-tuned from one base, in the space of their parameters.

* `merge`: any method of `METHODS` by name, in one call; `average`, `weighted_average`,
  `task_arithmetic` (Ilharco et al., arXiv:2212.04089), `ties` (Yadav et al., arXiv:2306.01708),
  `dare` (Yu et al., arXiv:2311.03099).
* `fisher_merge`, `diagonal_fisher`, `floored_share`: Matena and Raffel, Merging Models with
  Fisher-Weighted Averaging, arXiv:2111.09832. Take it where a target is favoured and unlabelled
  inputs of every task are at hand.
* `search_weights` over `grid_weights` or `dirichlet_weights`: weights chosen on validation data.
* `learn_coefficients` with `prediction_entropy`: AdaMerging (Yang et al., arXiv:2310.02575).

Models of another size are made by `rml.training.coalesce` and `decoalesce`. Task vectors,
coefficients by block, masks and low rank are in `rml.ops.trees`.
"""

from rml.merging.adamerging import Learned, learn_coefficients, prediction_entropy
from rml.merging.averages import average, task_arithmetic, weighted_average
from rml.merging.dare import dare, drop_and_rescale
from rml.merging.fisher import diagonal_fisher, fisher_merge, floored_share
from rml.merging.methods import METHODS, Method, merge
from rml.merging.search import Found, dirichlet_weights, grid_weights, search_weights
from rml.merging.ties import ties, trim

__all__ = [
    "METHODS",
    "Found",
    "Learned",
    "Method",
    "average",
    "dare",
    "diagonal_fisher",
    "dirichlet_weights",
    "drop_and_rescale",
    "fisher_merge",
    "floored_share",
    "grid_weights",
    "learn_coefficients",
    "merge",
    "prediction_entropy",
    "search_weights",
    "task_arithmetic",
    "ties",
    "trim",
    "weighted_average",
]
