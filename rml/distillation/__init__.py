"""Distillation: a small network learns from a large one, and how much it should.

* `distill`: one call for every loss of `METHODS`, each by one signature on logits or features:
  KD, soft cross-entropy, DKD, DIST, OFA, FitNets, relational distances and angles, CC, CRD; the
  losses are in `rml.losses`. It takes "scalekd" too. `Network` is a teacher or a student.
* `ExitNetwork`: a student that is taught at exits of its stages too, in the space of logits, where
  networks of different architectures can be compared; with "ofa" it is Hao et al., One-for-All:
  Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, arXiv:2310.19444.
  `network_variables` leaves them away. `loss_beside` is the loss of a step of one's own.
* `ScaleNetwork`, `scalekd_loss`: a student of any architecture in the space of a ViT's tokens, Fan
  et al., ScaleKD: Strong Vision Transformers Could Be Excellent Teachers, arXiv:2411.06786. Its
  parts are `CrossAttentionProjector` (beside it `LinearProjector`), `mimic` and `dual_view`, and
  `through_teacher`, the last blocks of the frozen teacher; `as_map` puts tokens in a grid.
* `relations`, `FusionRatio`, `fused_loss`, `ratio_lookahead`, `saturation`, `teacher_means`: Hu et
  al., Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation,
  arXiv:2312.15112. Of each example a network learns, on validation data, how much the teacher has
  to say.
* `linear_ratio`, `cosine_ratio`, `correctness_ratio`, `entropy_ratio`, `wls_ratio`: ratios that are
  not learned; the last is Zhou et al., arXiv:2102.00650.
"""

from rml.distillation.cross_attention_projector import (
    CrossAttentionProjector,
    LinearProjector,
    as_map,
)
from rml.distillation.distill import Distilled, distill
from rml.distillation.dual_view import dual_view, mimic
from rml.distillation.methods import METHODS, Method, loss_beside
from rml.distillation.networks import ExitNetwork, Maps, Network, Outputs, network_variables
from rml.distillation.ratios import (
    correctness_ratio,
    cosine_ratio,
    entropy_ratio,
    linear_ratio,
    wls_ratio,
)
from rml.distillation.scalekd import Projected, ScaleNetwork, scalekd_loss
from rml.distillation.teacher_path import last_blocks, through_teacher
from rml.distillation.teachers import teacher_means
from rml.distillation.trilateral import (
    FusionRatio,
    fused_loss,
    ratio_lookahead,
    relations,
    saturation,
)

__all__ = [
    "METHODS",
    "CrossAttentionProjector",
    "Distilled",
    "ExitNetwork",
    "FusionRatio",
    "LinearProjector",
    "Maps",
    "Method",
    "Network",
    "Outputs",
    "Projected",
    "ScaleNetwork",
    "as_map",
    "correctness_ratio",
    "cosine_ratio",
    "distill",
    "dual_view",
    "entropy_ratio",
    "fused_loss",
    "last_blocks",
    "linear_ratio",
    "loss_beside",
    "mimic",
    "network_variables",
    "ratio_lookahead",
    "relations",
    "saturation",
    "scalekd_loss",
    "teacher_means",
    "through_teacher",
    "wls_ratio",
]
