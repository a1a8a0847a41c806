"""Metric learning: embeddings in which classes that were never trained on lie apart.

* `class_prototypes`, `cosine_logits`: vectors of novel classes from their examples, and how rows
  are classified by them; `OpenClassifier` is a classifier that classes are added to. `unit_rows`
  keeps trained class vectors on the sphere. Hyperspherical embedding for novel class
  classification, arXiv:2102.03243; its loss is `rml.losses.normalized_softmax`.

* `metrix`, `draw_mixtures`, `mix`, `mixed_similarities`, `similarities_of_mixed`,
  `positivity_threshold`: losses of pairs on mixed examples, whose targets are mixed too. It takes
  two to tango: mixup for deep metric learning, ICLR 2022, arXiv:2106.04990; its losses are cases of
  `rml.losses.pair_loss`.

What they are compared with is in `rml.losses` too: `triplet_loss`, `contrastive_pairs`,
`prototypical_loss`, `sup_con`, `multi_similarity`, `proxy_anchor`.
"""

from rml.metric.metrix import (
    Mixtures,
    draw_mixtures,
    metrix,
    mix,
    mixed_similarities,
    positivity_threshold,
    similarities_of_mixed,
)
from rml.metric.novel import OpenClassifier, class_prototypes, cosine_logits
from rml.metric.projection import unit_rows

__all__ = [
    "Mixtures",
    "OpenClassifier",
    "class_prototypes",
    "cosine_logits",
    "draw_mixtures",
    "metrix",
    "mix",
    "mixed_similarities",
    "positivity_threshold",
    "similarities_of_mixed",
    "unit_rows",
]
