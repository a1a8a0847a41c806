"""Losses on embeddings, logits or pairs that several areas use.

Most compare every row of a batch with every other. Those stream: memory grows with the batch, not
with its square, and `axis_name` spreads them round a ring of devices (`rml.training.over_batch`).

* `info_nce`: van den Oord et al., arXiv:1807.03748. `info_nce_with_queue`: among the keys of a
  queue, He et al., Momentum Contrast, arXiv:1911.05722.
* `nt_xent`: Chen et al., SimCLR, arXiv:2002.05709.
* `sup_con`: Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362.
* `clip_loss`: Radford et al., CLIP, arXiv:2103.00020. `siglip_loss`: Zhai et al., SigLIP,
  arXiv:2303.15343.
* `dcl`: Yeh et al., Decoupled Contrastive Learning, arXiv:2110.06848.
* `multiple_negatives_ranking`: Henderson et al., arXiv:1705.00652, with hard negatives.
* `smoothed_cross_entropy`: label smoothing, Szegedy et al., arXiv:1512.00567.
* `triplet_loss`: Schroff et al., FaceNet, arXiv:1503.03832, and Hermans et al., arXiv:1703.07737.
* `barlow_twins`: Zbontar et al., arXiv:2103.03230. `vicreg`: Bardes et al., arXiv:2105.04906.
"""

from rml.losses.barlow_twins import barlow_twins
from rml.losses.clip import clamp_log_scale, clip_loss
from rml.losses.cross_entropy import smoothed_cross_entropy
from rml.losses.dcl import dcl
from rml.losses.infonce import info_nce, info_nce_with_queue
from rml.losses.mnr import multiple_negatives_ranking
from rml.losses.ntxent import nt_xent
from rml.losses.siglip import siglip_loss
from rml.losses.supcon import sup_con
from rml.losses.triplet import triplet_loss
from rml.losses.vicreg import vicreg

__all__ = [
    "barlow_twins",
    "clamp_log_scale",
    "clip_loss",
    "dcl",
    "info_nce",
    "info_nce_with_queue",
    "multiple_negatives_ranking",
    "nt_xent",
    "siglip_loss",
    "smoothed_cross_entropy",
    "sup_con",
    "triplet_loss",
    "vicreg",
]
