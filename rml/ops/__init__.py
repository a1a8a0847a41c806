"""Array mathematics that several parts of the library need.

* `normalize`, `dot_product`, `cosine_similarity`, `euclidean`, `squared_euclidean`, `fold_blocks`:
  similarities and distances of rows, all pairs at once or a block at a time.
* `topk`, `knn_graph`, `nearest`, `knn_affinity`: the largest of many, and graphs of neighbours.
* `row_values`, `row_and_column_values`, `symmetric_logsumexp`, `weighted_sum`, `masked_sum`,
  `ring_values`: sums over all pairs of rows whose memory grows with the rows, on one device or
  round a ring of them.
* `attend_part`, `merge_parts`: attention in parts with their log-sum-exps, which merge exactly;
  `attend_in_blocks`, `block_sparse_attention`, `ring_attention` are made of them, in memory that is
  linear in the tokens. `Visible` says which keys a query may see.
* `group_quantize`, `group_dequantize`, `pack`, `unpack`, `pack_groups`, `unpack_groups`: arrays
  in 1 to 8 bits, groups with a scale and an offset each.
* `fused_attention`: attention of short sequences in one kernel on TPUs.
* `t_interval`: Student's interval of a mean; `crossed_interval`: of a table of seeds and units.
  `class_means`: means of classes.
* `fatrelu`, `shifted_relu`, `keep_largest`: activations most of whose values are exactly zero.
* `cholesky`, `logdet`, `gaussian_kl` and others: Gram matrices that are positive definite;
  `arc_cosine` is a kernel that two areas read.
* `trees`: trees of parameters as task vectors, with coefficients by block, masks, norms and
  low-rank parts.
* `full_precision`, `use_precision`: products that keep all bits of float32 on every device.
"""

from rml.ops import trees
from rml.ops.arc_cosine import arc_cosine
from rml.ops.attention_parts import Part, Visible, attend_part, merge_parts
from rml.ops.block_sparse import block_sparse_attention
from rml.ops.blocked_attention import attend_in_blocks
from rml.ops.class_means import class_means
from rml.ops.fused_attention import fused_attention
from rml.ops.graph import knn_affinity, nearest, symmetrize
from rml.ops.intervals import CrossedInterval, MeanInterval, crossed_interval, t_interval
from rml.ops.neighbors import NeighborGraph, knn_graph, mutual, union, with_self_loops
from rml.ops.pairwise import (
    cosine_similarity,
    dot_product,
    euclidean,
    fold_blocks,
    safe_sqrt,
    squared_euclidean,
)
from rml.ops.precision import full_precision, use_precision
from rml.ops.psd import (
    Cholesky,
    cholesky,
    gaussian_kl,
    gaussian_log_density,
    logdet,
    noisy_log_density,
    require_finite,
    require_positive_definite,
    solve_lower,
)
from rml.ops.quantize import (
    Codes,
    Packed,
    group_dequantize,
    group_quantize,
    pack,
    pack_groups,
    unpack,
    unpack_groups,
)
from rml.ops.ring import ring_values
from rml.ops.ring_attention import ring_attention
from rml.ops.similarity import normalize, wide
from rml.ops.sparse_activations import fatrelu, keep_largest, shifted_relu
from rml.ops.streaming import (
    masked_sum,
    row_and_column_values,
    row_values,
    symmetric_logsumexp,
    weighted_sum,
)
from rml.ops.topk import topk

__all__ = [
    "Cholesky",
    "Codes",
    "CrossedInterval",
    "MeanInterval",
    "NeighborGraph",
    "Packed",
    "Part",
    "Visible",
    "arc_cosine",
    "attend_in_blocks",
    "attend_part",
    "block_sparse_attention",
    "cholesky",
    "class_means",
    "cosine_similarity",
    "crossed_interval",
    "dot_product",
    "euclidean",
    "fatrelu",
    "fold_blocks",
    "full_precision",
    "fused_attention",
    "gaussian_kl",
    "gaussian_log_density",
    "group_dequantize",
    "group_quantize",
    "keep_largest",
    "knn_affinity",
    "knn_graph",
    "logdet",
    "masked_sum",
    "merge_parts",
    "mutual",
    "nearest",
    "noisy_log_density",
    "normalize",
    "pack",
    "pack_groups",
    "require_finite",
    "require_positive_definite",
    "ring_attention",
    "ring_values",
    "row_and_column_values",
    "row_values",
    "safe_sqrt",
    "shifted_relu",
    "solve_lower",
    "squared_euclidean",
    "symmetric_logsumexp",
    "symmetrize",
    "t_interval",
    "topk",
    "trees",
    "union",
    "unpack",
    "unpack_groups",
    "use_precision",
    "weighted_sum",
    "wide",
    "with_self_loops",
]
