"""Attention: random-feature attention, its kernel limit, and approximations of softmax.

* `rfa_features`, `rf_mlp_features`, `RandomFeatureAttention`: Fu et al., What can a Single
  Attention Layer Learn? A Study Through the Random Features Lens, arXiv:2307.11353, beside random
  features of an MLP. `rfa_kernel` and `rf_mlp_kernel` are the limits of many heads; `MODELS` has
  the models' names.
* `fit_ridge`, `streamed_gram`, `solve_prefixes`, `leave_one_out`: ridge regression on features that
  never exist at once.
* `METHODS`: softmax attention and its approximations by name, of one signature: `exact` in blocks;
  `window` with sinks, the simple baseline; `hyperattention`; `combiner`; `performer`;
  `s2_attention`; `harmonic` and `alibi`, whose logits fall with distance; `block_law`, blocks drawn
  by distance. `attention_of` makes of each what a model of `rml.models` takes as its attention, in
  all layers or in some.
* `attend_over_mesh`: exact attention of a text that is spread over all devices, round their ring;
  with `rml.training.split_tokens` for texts that one device cannot hold.
* `hyper_attention`, with `HyperSettings`, `sorted_order`, `heavy_mask` and `hardness`: Han et al.,
  HyperAttention: Long-context Attention in Near-Linear Time, arXiv:2310.05869. Take it for long
  texts without a structure that is known; take the window where near tokens are enough.
* `combiner_attention`, with `CombinerSettings`, `partition`, `count_keys` and `combiner_weights`:
  Ren et al., Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv:2107.05768.
  Take it for models that are trained with it and must see all of a long text at a fixed cost a
  token. With a `DeepSet` or a `RowProjection` regions are summarised by weights of a model, such as
  `CombinerAttention` has. `CombinerCache`, made by `combiner_cache`, keeps summaries of finished
  segments to decode by.
* `harmonic_attention`, with `distance_laws` and `alibi_attention`: Li, The Nature of Mathematical
  Modeling and Probabilistic Optimization Engineering in Generative AI, arXiv:2410.18441, in our
  reading, beside ALiBi. Take ALiBi or the bias to train models that read longer texts later.
* `block_law_attention`, with `Law`, `keep_probabilities`, `draw_pattern` and `paired_rows`: blocks
  of keys drawn by their distance, after the same paper, in our reading. Take the window instead
  where one must not be wrong by chance.
* `StaircaseCache`, made by `staircase_cache` of a `Staircase`: the table of staircase adaptive
  quantisation of the same paper. Take it to keep long texts in few bits; with two steps it is
  uniform, as KIVI's is.
* `sample_positions`, `interpolated_positions`, `pose_positions`: Liu et al., E²-LLM: Efficient
  and Extreme Length Extension of Large Language Models, arXiv:2401.06951. Take it to make a model
  with rotary positions read longer texts than it can be trained on.
* `s2_attention`, with `shard_pattern`, `check_coverage` and `pattern_bias`: Lin et al., Efficient
  LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads,
  arXiv:2407.17678. Take it for models that are trained with it and whose cache must be small;
  `rml.models.sharded_cache` keeps only what each head of keys may still read, and `hybrid_cache`
  does so in some layers. Of any pattern of blocks `work` says which share it visits, `keeps_left`
  whether such a cache can follow it.
* `BlockMemory`, made by `block_memory`, with `probe_query`, `activation_bias`, `retrieve` and
  `layer_budgets`: Xiao et al., Activation-aware Probe-Query: Effective Key-Value Retrieval for
  Long-Context LLMs Inference, arXiv:2502.13542. Take it to read long texts with a trained model as
  it is, by attention to few of the keys that are kept.
* `hyperzzw_global`, `hyperzzw_local`, `hyperzzw_gate`: kernels that slow nets write, multiplied by
  activations, in the place of attention, see `rml.models.Terminator`. Take it to study implicit
  kernels; the public code's product of planes costs more than a convolution.
* `performer_attention`: Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794.
* `build_targets`, `draw_inputs`: permutation-invariant functions to be learned.
"""

from rml.attention.actqkv import (
    activation_bias,
    block_representatives,
    layer_budgets,
    probe_query,
    retrieve,
    update_moments,
)
from rml.attention.block_law import (
    Law,
    block_law_attention,
    block_law_part,
    causal_weights,
    draw_pattern,
    keep_probabilities,
    paired_rows,
)
from rml.attention.block_lookup import MemorySettings
from rml.attention.block_memory import BlockMemory, block_memory
from rml.attention.combiner import CombinerSettings, combiner_attention
from rml.attention.combiner_cache import CombinerCache, combiner_cache
from rml.attention.combiner_module import CombinerAttention
from rml.attention.combiner_summaries import DeepSet, RowProjection
from rml.attention.hardness import hardness, heavy_mask
from rml.attention.harmonic_bias import (
    Laws,
    alibi_attention,
    distance_laws,
    harmonic_attention,
    harmonic_numbers,
    head_slopes,
)
from rml.attention.hyper_samples import HyperSettings
from rml.attention.hyperattention import hyper_attention
from rml.attention.in_models import attention_of
from rml.attention.kernels import rf_mlp_kernel, rfa_kernel
from rml.attention.length_extension import (
    interpolated_positions,
    pose_positions,
    sample_positions,
)
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
from rml.attention.over_mesh import attend_over_mesh
from rml.attention.partitions import combiner_weights, count_keys, partition
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
from rml.attention.s2_attention import (
    check_coverage,
    coverage,
    pattern_bias,
    s2_attention,
    shard_pattern,
    work,
)
from rml.attention.sort_lsh import buckets, gray_rank, hyperplanes, sorted_order
from rml.attention.staircase_cache import (
    Staircase,
    StaircaseCache,
    bits_by_age,
    bytes_held,
    staircase_cache,
)
from rml.attention.targets import build_targets, draw_inputs
from rml.models.hyperzzw import hyperzzw_gate, hyperzzw_global, hyperzzw_local
from rml.models.sharded_cache import keeps_left

__all__ = [
    "METHODS",
    "MODELS",
    "BlockMemory",
    "CombinerAttention",
    "CombinerCache",
    "CombinerSettings",
    "DeepSet",
    "HyperSettings",
    "Law",
    "Laws",
    "MemorySettings",
    "RandomFeatureAttention",
    "RowProjection",
    "Staircase",
    "StaircaseCache",
    "activation_bias",
    "alibi_attention",
    "attend_over_mesh",
    "attention_of",
    "bits_by_age",
    "block_law_attention",
    "block_law_part",
    "block_memory",
    "block_representatives",
    "buckets",
    "build_targets",
    "bytes_held",
    "causal_weights",
    "check_coverage",
    "combiner_attention",
    "combiner_cache",
    "combiner_weights",
    "count_keys",
    "coverage",
    "distance_laws",
    "draw_inputs",
    "draw_pattern",
    "draw_weights",
    "features",
    "fit_ridge",
    "gaussian_projection",
    "grams",
    "gray_rank",
    "hardness",
    "harmonic_attention",
    "harmonic_numbers",
    "head_slopes",
    "heavy_mask",
    "hyper_attention",
    "hyperplanes",
    "hyperzzw_gate",
    "hyperzzw_global",
    "hyperzzw_local",
    "interpolated_positions",
    "keep_probabilities",
    "keeps_left",
    "kernel",
    "kernel_learning_curve",
    "layer_budgets",
    "learning_curve",
    "leave_one_out",
    "leave_one_out_primal",
    "paired_rows",
    "partition",
    "pattern_bias",
    "performer_attention",
    "pose_positions",
    "positive_features",
    "probe_query",
    "retrieve",
    "rf_mlp_features",
    "rf_mlp_kernel",
    "rf_mlp_weights",
    "rfa_features",
    "rfa_kernel",
    "rfa_weights",
    "s2_attention",
    "sample_positions",
    "shard_pattern",
    "solve_min_norm",
    "solve_prefixes",
    "solve_ridge",
    "sorted_order",
    "staircase_cache",
    "streamed_gram",
    "streamed_weights",
    "update_moments",
    "work",
]
