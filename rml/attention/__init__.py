"""Attention: random-feature attention, its kernel limit, and approximations of softmax.

* `rfa_features`, `rf_mlp_features`, `RandomFeatureAttention`: Fu et al., What can a Single
  Attention Layer Learn? A Study Through the Random Features Lens, arXiv:2307.11353, beside random
  features of an MLP. `rfa_kernel` and `rf_mlp_kernel` are the limits of many heads; `MODELS` has
  the models' names.
* `fit_ridge`, `streamed_gram`, `solve_prefixes`, `leave_one_out`: ridge regression on features that
  never exist at once.
* `METHODS`: softmax attention and its approximations by name, of one signature: `exact` in blocks;
  `window` with sinks, the simple baseline; `hyperattention`; `performer`. `attention_of` makes of
  each what a model of `rml.models` takes as its attention, in all layers or in some.
* `hyper_attention`, with `sorted_order`, `heavy_mask` and `hardness`: Han et al., HyperAttention:
  Long-context Attention in Near-Linear Time, arXiv:2310.05869. Take it for long texts without a
  structure that is known; take the window where near tokens are enough.
* `performer_attention`: Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794.
* `build_targets`, `draw_inputs`: permutation-invariant functions to be learned.
"""

from rml.attention.hyperattention import hardness, heavy_mask, hyper_attention
from rml.attention.in_models import attention_of
from rml.attention.kernels import rf_mlp_kernel, rfa_kernel
from rml.attention.methods import METHODS
from rml.attention.models import (
    MODELS,
    draw_weights,
    features,
    grams,
    kernel,
    kernel_learning_curve,
    learning_curve,
)
from rml.attention.performer import gaussian_projection, performer_attention, positive_features
from rml.attention.random_feature_attention import (
    RandomFeatureAttention,
    rf_mlp_features,
    rf_mlp_weights,
    rfa_features,
    rfa_weights,
)
from rml.attention.ridge import (
    fit_ridge,
    leave_one_out,
    leave_one_out_primal,
    solve_min_norm,
    solve_prefixes,
    solve_ridge,
    streamed_gram,
    streamed_weights,
)
from rml.attention.sort_lsh import buckets, gray_rank, hyperplanes, sorted_order
from rml.attention.targets import build_targets, draw_inputs

__all__ = [
    "METHODS",
    "MODELS",
    "RandomFeatureAttention",
    "attention_of",
    "buckets",
    "build_targets",
    "draw_inputs",
    "draw_weights",
    "features",
    "fit_ridge",
    "gaussian_projection",
    "grams",
    "gray_rank",
    "hardness",
    "heavy_mask",
    "hyper_attention",
    "hyperplanes",
    "kernel",
    "kernel_learning_curve",
    "learning_curve",
    "leave_one_out",
    "leave_one_out_primal",
    "performer_attention",
    "positive_features",
    "rf_mlp_features",
    "rf_mlp_kernel",
    "rf_mlp_weights",
    "rfa_features",
    "rfa_kernel",
    "rfa_weights",
    "solve_min_norm",
    "solve_prefixes",
    "solve_ridge",
    "sorted_order",
    "streamed_gram",
    "streamed_weights",
]
