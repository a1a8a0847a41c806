"""Losses on embeddings, logits or pairs that several areas use.

Many compare every row of a batch with every other. They differ in memory:

* `info_nce`, `nt_xent`, `sup_con`, `clip_loss` and `siglip_loss` stream: memory grows with the
  batch, not with its square. `axis_name` spreads them round a ring of devices, and
  `normalized_softmax`, which compares no two rows, over any (`rml.training.over_batch`).
* `dcl`, `multiple_negatives_ranking`, `nnclr` and `info_nce_with_queue` stream on one device alone.
* `triplet_loss`, which mines, `contrastive_pairs`, `multi_similarity` and the relations of
  `rkd_distance`, `rkd_angle`, `correlation_congruence` and `crd_loss` take memory that is quadratic
  in the batch, `proxy_anchor` memory of rows times classes.

Call them inside `jax.jit`, as a step of training does: a stream is a loop, which JAX compiles anew
at every call outside of a program.

The losses and their sources:

* `info_nce`: van den Oord et al., arXiv:1807.03748. `info_nce_with_queue`: among the keys of a
  queue, He et al., Momentum Contrast, arXiv:1911.05722.
* `nt_xent`: Chen et al., SimCLR, arXiv:2002.05709.
* `sup_con`: Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362.
* `clip_loss`: Radford et al., CLIP, arXiv:2103.00020. `siglip_loss`: Zhai et al., SigLIP,
  arXiv:2303.15343.
* `dcl`: Yeh et al., Decoupled Contrastive Learning, arXiv:2110.06848.
* `multiple_negatives_ranking`: Henderson et al., arXiv:1705.00652, with hard negatives.
* `masked_lm`: Devlin et al., BERT, arXiv:1810.04805.
* `smoothed_cross_entropy`: label smoothing, Szegedy et al., arXiv:1512.00567.
* `triplet_loss`: Schroff et al., FaceNet, arXiv:1503.03832, and Hermans et al., arXiv:1703.07737.
  `contrastive_pairs`: Hadsell et al., CVPR 2006. `prototypical_loss`: Snell et al.,
  arXiv:1703.05175.
* `multi_similarity`: Wang et al., arXiv:1904.06627. `proxy_anchor`: Kim et al., arXiv:2003.13911.
  They are cases of `pair_loss`, Venkataramanan et al., arXiv:2106.04990, in which a pair may be
  positive by a share; a `PairForm`, such as `contrastive_form` and `binomial_form`, says which.
* `normalized_softmax`: Pereira et al., arXiv:2102.03243, with the margins of CosFace,
  arXiv:1801.09414, and ArcFace, arXiv:1801.07698; `minimum_loss` and `scale_for` are its bounds.
* `barlow_twins`: Zbontar et al., arXiv:2103.03230. `vicreg`: Bardes et al., arXiv:2105.04906.
* `simsiam`: Chen & He, arXiv:2011.10566, of `negative_cosine`. `byol`: Grill et al.,
  arXiv:2006.07733.
* `swav`: Caron et al., arXiv:2006.09882, with `sinkhorn_codes`. `dino`: Caron et al.,
  arXiv:2104.14294, with `update_center`.
* `nnclr`: Dwibedi et al., arXiv:2104.14548, with `nearest_support`.
* Distillation of logits: `kd_loss` and `soft_cross_entropy`, Hinton et al., arXiv:1503.02531;
  `annealing_loss`, Jafari et al., arXiv:2104.07163;
  `dkd_loss`, Zhao et al., arXiv:2203.08679; `dist_loss`, Huang et al., arXiv:2205.10536;
  `target_enhanced_loss`, Hao et al., One-for-All, arXiv:2310.19444. Of features: `fitnet_loss`,
  Romero et al., arXiv:1412.6550; `rkd_distance` and `rkd_angle`, Park et al., arXiv:1904.05068;
  `correlation_congruence`, Peng et al., arXiv:1904.01802; `crd_loss`, Tian et al.,
  arXiv:1910.10699. All are called `(student, teacher, labels)`.
* `dpo_loss`: Rafailov et al., Direct Preference Optimization, arXiv:2305.18290, of answers whose
  `sequence_log_prob` is known.

A loss that is a mean over examples or anchors takes `reduction="none"` for the values of each.
`barlow_twins` and `vicreg` are statistics of a whole batch, `triplet_loss` and `contrastive_pairs`
are means over its triplets and pairs: they have no value of an example.
Losses of distillation and preference give the values of each always. All raise `ValueError` where
a temperature is not above 0 or a weight is below 0; one in an array is not looked at.
"""

from rml.losses.barlow_twins import barlow_twins
from rml.losses.clip import clamp_log_scale, clip_loss
from rml.losses.contrastive_pairs import contrastive_pairs
from rml.losses.cross_entropy import smoothed_cross_entropy
from rml.losses.dcl import dcl
from rml.losses.dino import dino, update_center
from rml.losses.distillation import (
    annealing_loss,
    dist_loss,
    dkd_loss,
    kd_loss,
    soft_cross_entropy,
    target_enhanced_loss,
)
from rml.losses.feature_distillation import (
    correlation_congruence,
    crd_loss,
    fitnet_loss,
    rkd_angle,
    rkd_distance,
)
from rml.losses.infonce import info_nce, info_nce_with_queue
from rml.losses.masked_lm import masked_lm
from rml.losses.mnr import multiple_negatives_ranking
from rml.losses.nnclr import nearest_support, nnclr
from rml.losses.normalized_softmax import minimum_loss, normalized_softmax, scale_for
from rml.losses.ntxent import nt_xent
from rml.losses.pair_loss import (
    PairForm,
    PairSide,
    binomial_form,
    contrastive_form,
    multi_similarity,
    multi_similarity_form,
    pair_loss,
    proxy_anchor,
    proxy_anchor_form,
)
from rml.losses.predictive import byol, negative_cosine, simsiam
from rml.losses.preference import dpo_loss, sequence_log_prob
from rml.losses.prototypical import prototypical_loss
from rml.losses.siglip import siglip_loss
from rml.losses.supcon import sup_con
from rml.losses.swav import sinkhorn_codes, swav
from rml.losses.triplet import triplet_loss
from rml.losses.vicreg import vicreg

__all__ = [
    "PairForm",
    "PairSide",
    "annealing_loss",
    "barlow_twins",
    "binomial_form",
    "byol",
    "clamp_log_scale",
    "clip_loss",
    "contrastive_form",
    "contrastive_pairs",
    "correlation_congruence",
    "crd_loss",
    "dcl",
    "dino",
    "dist_loss",
    "dkd_loss",
    "dpo_loss",
    "fitnet_loss",
    "info_nce",
    "info_nce_with_queue",
    "kd_loss",
    "masked_lm",
    "minimum_loss",
    "multi_similarity",
    "multi_similarity_form",
    "multiple_negatives_ranking",
    "nearest_support",
    "negative_cosine",
    "nnclr",
    "normalized_softmax",
    "nt_xent",
    "pair_loss",
    "prototypical_loss",
    "proxy_anchor",
    "proxy_anchor_form",
    "rkd_angle",
    "rkd_distance",
    "scale_for",
    "sequence_log_prob",
    "siglip_loss",
    "simsiam",
    "sinkhorn_codes",
    "smoothed_cross_entropy",
    "soft_cross_entropy",
    "sup_con",
    "swav",
    "target_enhanced_loss",
    "triplet_loss",
    "update_center",
    "vicreg",
]
