"""Sparse activations of decoders, trained or thinned out, and edits of a few attention heads.

* `sine_stages`, `linear_stages`, `activation_penalty`, `relufy`, `fitted_sparsity`: Song et al.,
  ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large Language Models,
  arXiv:2402.13516. Take it where a model may be trained further: most channels become zero. The
  activations are `rml.ops.fatrelu`, `shifted_relu` and `keep_largest`, by name in a `Llama`.
* `observe`, `thresholds_of`, `calibrate`, `importance`, `channel_scale`: He et al., CHESS:
  Optimizing LLM Inference via Channel-Wise Thresholding and Selective Sparsification,
  arXiv:2409.01366, with CATS's uniform threshold. Take it where nothing may be trained: half of
  the channels are left out. `save_thresholds` and `load_thresholds` keep them beside a checkpoint.
* `layer_divergence`, `shares_by_sensitivity`: more of the layers that matter less, this
  repository's own; the thresholds of CHESS take such shares.
* `activation_statistics`, `live_pairs`, `expected_union`, `weights_read`: how sparse layers and
  channels are, measured by a `rml.models.Probe`.
* `sparse_ffn`, with `dense_ffn`, `feed_forward_of` and `bytes_read`: the feed-forward of one token
  that reads the rows of live channels only. `rml.models.live_rows` is the same in a decoder.
* `fit_predictor`, `predict`, `predictor_scores`: which channels will be live, before any is
  computed.
* `init_edits`, `penalty`, `head_scores`, `select_heads`, `masked`, `fold`: Yin et al., LoFiT:
  Localized Fine-tuning on LLM Representations, arXiv:2406.01563. Take it where a frozen model is to
  learn a task by some hundred numbers, or to see which heads a task needs. `save_edits` and
  `load_edits` keep them in a file of a few kilobytes.
* `head_outputs`, `probe_scores`, `mean_differences`, `shifts`: Li et al., Inference-Time
  Intervention, arXiv:2306.03341. Take it where not even that may be trained.
"""

from rml.sparsity.allocation import layer_divergence, shares_by_sensitivity
from rml.sparsity.calibrate import calibrate, observe
from rml.sparsity.iti import (
    Directions,
    head_outputs,
    mean_differences,
    probe_scores,
    shifts,
)
from rml.sparsity.lofit import (
    edit_shape,
    fold,
    head_scores,
    init_edits,
    load_edits,
    masked,
    penalty,
    save_edits,
    select_heads,
)
from rml.sparsity.predictor import (
    Predictor,
    PredictorScores,
    fit_predictor,
    predict,
    predictor_scores,
)
from rml.sparsity.progressive import (
    activation_penalty,
    fitted_sparsity,
    linear_stages,
    relufy,
    sine_stages,
)
from rml.sparsity.sparse_ffn import (
    FeedForward,
    bytes_read,
    dense_ffn,
    feed_forward_of,
    sparse_ffn,
)
from rml.sparsity.statistics import (
    Statistics,
    activation_statistics,
    expected_union,
    live_pairs,
    weights_read,
)
from rml.sparsity.thresholds import (
    Calibration,
    Moments,
    binned_quantile,
    channel_scale,
    importance,
    kth_smallest,
    load_thresholds,
    random_channels,
    save_thresholds,
    thresholds_of,
)

__all__ = [
    "Calibration",
    "Directions",
    "FeedForward",
    "Moments",
    "Predictor",
    "PredictorScores",
    "Statistics",
    "activation_penalty",
    "activation_statistics",
    "binned_quantile",
    "bytes_read",
    "calibrate",
    "channel_scale",
    "dense_ffn",
    "edit_shape",
    "expected_union",
    "feed_forward_of",
    "fit_predictor",
    "fitted_sparsity",
    "fold",
    "head_outputs",
    "head_scores",
    "importance",
    "init_edits",
    "kth_smallest",
    "layer_divergence",
    "linear_stages",
    "live_pairs",
    "load_edits",
    "load_thresholds",
    "masked",
    "mean_differences",
    "observe",
    "penalty",
    "predict",
    "predictor_scores",
    "probe_scores",
    "random_channels",
    "relufy",
    "save_edits",
    "save_thresholds",
    "select_heads",
    "shares_by_sensitivity",
    "shifts",
    "sine_stages",
    "sparse_ffn",
    "thresholds_of",
    "weights_read",
]
