"""Merging of models that were fine-tuned from one base, in the space of their parameters.

* `merge`: any method of `METHODS` by name, in one call; `merge_files`: files of safetensors, a
  tensor at a time; `average`, `weighted_average`,
  `task_arithmetic` (Ilharco et al., arXiv:2212.04089), `ties` (Yadav et al., arXiv:2306.01708),
  `dare` (Yu et al., arXiv:2311.03099).
* `fisher_merge`, `diagonal_fisher`, `floored_share`, `save_fisher`, `load_fisher`: Matena and
  Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832. Take it where a target is
  favoured and unlabelled inputs of every task are at hand.
* `regmean` by `input_grams`: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language
  Models, arXiv:2212.09849. Take it where unlabelled inputs of every task can be read once.
* `search_weights` over `grid_weights` or `dirichlet_weights`: weights chosen on validation data.
* `fuse_decode`: experts of a small language model steer a large one while it decodes, by
  `fuse_logits` and `choose_alpha` (Fan et al., On Giant's Shoulders, arXiv:2406.15480). Take it
  where the large one cannot be trained.
* `learn_coefficients` with `prediction_entropy`: AdaMerging (Yang et al., arXiv:2310.02575).
* `learn_scaling`, `compose`, `linearised`, `draw_parts`, without labels `ufm`, and with blocks
  chosen beforehand `select_blocks`, `take_blocks`, `learn_blocks`, `compose_blocks`: Zhang et al.,
  Knowledge Composition using Task Vectors with Learned Anisotropic Scaling, arXiv:2407.02880. Take
  it where some labels, or inputs of one target, are at hand.
* `learn_mask`, `mask_vectors`, `draw_mask`, `hard_mask`, `save_mask`, `load_mask`: Tang et al.,
  Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion,
  arXiv:2312.06173.
* `modularise`, `twin_params`, `twin_apply`, `save_twin`, `load_twin`: Lu et al., Twin-Merging:
  Dynamic Integration of Modular Expertise in Model Merging, arXiv:2406.15479. Take it where inputs
  of all tasks come mixed and memory for a copy or two is at hand; its router is
  `rml.models.Router`.
* `align`, `fuse` with `layer_activations`: Imfeld et al., Transformer Fusion with Optimal
  Transport, arXiv:2310.05719. Take it for two models from different initial weights, or of two
  widths; `ground_cost`, `transport_map`, `marginal_error`, `residual_map` and `width_map` are its
  parts.

Models of another size are made by `rml.training.coalesce` and `decoalesce`. Task vectors,
coefficients by block, masks and low rank are in `rml.ops.trees`.
"""

from rml.merging.adamerging import learn_coefficients, prediction_entropy
from rml.merging.atlas import (
    block_slopes,
    coefficient_penalty,
    compose,
    cosine_matrix,
    draw_parts,
    learn_scaling,
    linearised,
    part_coefficients,
    select_blocks,
)
from rml.merging.atlas_blocks import Blocks, compose_blocks, learn_blocks, take_blocks
from rml.merging.averages import average, task_arithmetic, weighted_average
from rml.merging.concrete import (
    LearnedMask,
    binary_concrete,
    draw_mask,
    expected_mask,
    hard_mask,
    learn_mask,
    mask_logits,
    mask_vectors,
)
from rml.merging.dare import dare, drop_and_rescale
from rml.merging.files import merge_files
from rml.merging.fisher import diagonal_fisher, fisher_merge, floored_share
from rml.merging.logits_fusion import choose_alpha, fuse_decode, fuse_logits, kl_shift
from rml.merging.methods import METHODS, Method, merge
from rml.merging.ot_fusion import Aligned, align, fuse
from rml.merging.pseudo_labels import PseudoLabelled, trusted_examples, ufm
from rml.merging.regmean import input_grams, regmean
from rml.merging.search import Found, dirichlet_weights, grid_weights, search_weights
from rml.merging.ties import ties, trim
from rml.merging.transport import (
    ground_cost,
    marginal_error,
    residual_map,
    transport_map,
    width_map,
)
from rml.merging.tree_files import load_fisher, load_mask, save_fisher, save_mask
from rml.merging.twin import Own, Twin, modularise, twin_apply, twin_params
from rml.merging.twin_files import Prediction, SavedTwin, load_twin, save_twin
from rml.merging.unit_activations import LayerActivations, layer_activations, shortcut_shares

__all__ = [
    "METHODS",
    "Aligned",
    "Blocks",
    "Found",
    "LayerActivations",
    "LearnedMask",
    "Method",
    "Own",
    "Prediction",
    "PseudoLabelled",
    "SavedTwin",
    "Twin",
    "align",
    "average",
    "binary_concrete",
    "block_slopes",
    "choose_alpha",
    "coefficient_penalty",
    "compose",
    "compose_blocks",
    "cosine_matrix",
    "dare",
    "diagonal_fisher",
    "dirichlet_weights",
    "draw_mask",
    "draw_parts",
    "drop_and_rescale",
    "expected_mask",
    "fisher_merge",
    "floored_share",
    "fuse",
    "fuse_decode",
    "fuse_logits",
    "grid_weights",
    "ground_cost",
    "hard_mask",
    "input_grams",
    "kl_shift",
    "layer_activations",
    "learn_blocks",
    "learn_coefficients",
    "learn_mask",
    "learn_scaling",
    "linearised",
    "load_fisher",
    "load_mask",
    "load_twin",
    "marginal_error",
    "mask_logits",
    "mask_vectors",
    "merge",
    "merge_files",
    "modularise",
    "part_coefficients",
    "prediction_entropy",
    "regmean",
    "residual_map",
    "save_fisher",
    "save_mask",
    "save_twin",
    "search_weights",
    "select_blocks",
    "shortcut_shares",
    "take_blocks",
    "task_arithmetic",
    "ties",
    "transport_map",
    "trim",
    "trusted_examples",
    "twin_apply",
    "twin_params",
    "ufm",
    "weighted_average",
    "width_map",
]
