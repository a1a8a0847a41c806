"""Contrastive pretraining: what it needs beside a loss of `rml.losses`.

* `apply_to_views`, `apply_in_groups`: an encoder whose batch statistics are those of a view (Chen
  et al., MoCo v3, arXiv:2104.02057) or of a group (He et al., MoCo, arXiv:1911.05722, Section 3.3).
* `crop`, `inverse_cloze`, `pairs`: two spans of a document (Izacard et al., Contriever,
  arXiv:2112.09118, Section 3.1; inverse cloze: Lee et al., arXiv:1906.00300).
* `text_views`: both at once. `with_ends`: what an encoder takes of a span.
* `Prototypes`: clusters that projections are compared with (Caron et al., SwAV, arXiv:2006.09882;
  DINO, arXiv:2104.14294).
* `TwoTowers`: images and texts in one space (Radford et al., CLIP, arXiv:2103.00020).
* `delete`, `replace`, `mask`, `shuffle`, `corrupt`: corruptions of a span (Contriever, the same).
* `mask_tokens`: tokens hidden for a masked language model (Devlin et al., BERT, arXiv:1810.04805),
  from which Contriever starts.

Momentum encoder, queue and gradient cache are in `rml.training`.
"""

from rml.contrastive.corruption import CORRUPTIONS, corrupt, delete, mask, replace, shuffle
from rml.contrastive.masking import Masked, mask_tokens
from rml.contrastive.prototypes import Prototypes
from rml.contrastive.spans import PAIRS, Texts, crop, inverse_cloze, pairs, with_ends
from rml.contrastive.text_views import text_views
from rml.contrastive.towers import apply_in_groups, apply_to_views
from rml.contrastive.two_towers import TwoTowers

__all__ = [
    "CORRUPTIONS",
    "PAIRS",
    "Masked",
    "Prototypes",
    "Texts",
    "TwoTowers",
    "apply_in_groups",
    "apply_to_views",
    "corrupt",
    "crop",
    "delete",
    "inverse_cloze",
    "mask",
    "mask_tokens",
    "pairs",
    "replace",
    "shuffle",
    "text_views",
    "with_ends",
]
