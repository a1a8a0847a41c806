"""Hydra: contrastive learning in which any pair of classes is positive, in a subspace of its own.

Wu et al., Rethinking Positive Pairs in Contrastive Learning, arXiv:2410.18200 (v1 "Hydra", later
"SimLAP"). What is implemented, with z the projection of an image, y its class, y' the partner
class of its pair and E the class embeddings:

* Feature filter: g(y, y') = σ(MLP((E[y] + E[y']) / 2)), or the product of the two classes' gates;
  the variants of the gate are those of the authors' code (open, relaxed Bernoulli, stochastic).
* Similarity, v1: cosine of g ∘ z_a and g ∘ z_k over a temperature; the authors' later code skips
  the second normalisation (`renormalize=False`).
* Loss: -log e^s / (e^s + Σ_negatives e^s) for every positive, averaged. The positives of an anchor
  are the samples of its partner class, i = j included; negatives are of neither class.
* Pairs: uniform over the C (C + 1) / 2 unordered ones, or the batch's labels permuted.

The method is described loosely and the published codes differ. What is left open is an option:

* Positives: of the partner's class or of both (`positives`); the anchor itself too where its class
  is (`itself`, theirs), or never (ours).
* Weights: every anchor the same (ours), or every positive (`reduction="positives"`, theirs).
* Denominator: each positive alone beside the negatives (both), or all positives as in SupCon.
* Logits: cosine in the subspace (v1), or without the second normalisation and less α times the
  cosine in the whole space, α and temperature learned (`LearnedOptions`, their later code).
* Filter: mean of the embeddings and BatchNorm (theirs), or the product of the classes' gates and
  LayerNorm, so that a gate depends on its pair alone (ours).
* Penalty of the gates: towards binary ones (`gate_penalty`, ours), or the probability that
  stochastic gates are open (`openness`, computed in their code); none is active there.
* Projections: as the head gives them (ours), or through a LayerNorm (theirs); a classifier on
  features that get none of its gradient (`probe`, theirs).

`FeatureFilter`, `GatedEncoder` and `LearnedOptions` are the modules, `hydra_loss` and
`gate_penalty` the loss. `pairs` numbers, samples and batches pairs without listing them. `analysis`
says what gates show of the classes. `subspace` learns the gates of single pairs on frozen features.
"""

from rml.hydra.analysis import (
    RankTest,
    all_pairs,
    confusion_similarity,
    gate_binariness,
    gate_overlap,
    gate_sparsity,
    gate_statistics,
    pair_statistics,
    relation_correlation,
    shared_openness,
    taxonomy_test,
)
from rml.hydra.encoder import GatedEncoder, LearnedOptions
from rml.hydra.feature_filter import FeatureFilter, gate_penalty
from rml.hydra.loss import hydra_loss
from rml.hydra.pairs import (
    SAMPLING,
    number_of_pairs,
    pair_batches,
    sample_pairs,
    sample_partners,
    unrank,
    view_partners,
)
from rml.hydra.subspace import draw_pairs, learn_gates, pair_auroc

__all__ = [
    "SAMPLING",
    "FeatureFilter",
    "GatedEncoder",
    "LearnedOptions",
    "RankTest",
    "all_pairs",
    "confusion_similarity",
    "draw_pairs",
    "gate_binariness",
    "gate_overlap",
    "gate_penalty",
    "gate_sparsity",
    "gate_statistics",
    "hydra_loss",
    "learn_gates",
    "number_of_pairs",
    "pair_auroc",
    "pair_batches",
    "pair_statistics",
    "relation_correlation",
    "sample_pairs",
    "sample_partners",
    "shared_openness",
    "taxonomy_test",
    "unrank",
    "view_partners",
]
