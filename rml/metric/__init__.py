"""Metric learning: embeddings in which classes that were never trained on lie apart.

* `class_prototypes`, `cosine_logits`: vectors of novel classes from their examples, and how rows
  are classified by them; `OpenClassifier` is a classifier that classes are added to. `unit_rows`
  keeps trained class vectors on the sphere. Hyperspherical embedding for novel class
  classification, arXiv:2102.03243; its loss is `rml.losses.normalized_softmax`.

What it is compared with is in `rml.losses` too: `triplet_loss`, `contrastive_pairs`,
`prototypical_loss`, `sup_con`.
"""

from rml.metric.novel import OpenClassifier, class_prototypes, cosine_logits
from rml.metric.projection import unit_rows

__all__ = ["OpenClassifier", "class_prototypes", "cosine_logits", "unit_rows"]
