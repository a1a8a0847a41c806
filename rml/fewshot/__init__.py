"""Few-shot classification of frozen features, most of it transductive.

Every method is `method(support, support_labels, query, *, num_classes, ...)` to probabilities of
the queries; `episodes` draws tasks and `evaluate` solves thousands of them in one call.

* `transductive_clustering`: Ziko et al., Transductive Few-Shot Learning: Clustering is All You
  Need?, arXiv:2106.09516. Prototype costs (K-means, K-modes; squared Euclidean, cosine), Laplacian
  term, support constraints and entropy barrier, minimised by the concave-convex bound optimiser;
  `solver` has the energy, `bound` says why it falls. `kmeans` and `kmodes` are its cases without
  the Laplacian term. Model and optimiser are those of the summary and public code ("SLK") and
  of its predecessor Laplacian K-modes (arXiv:1810.13044). Differences: prototypes follow the soft
  assignments, so that they minimise the same energy (the code uses hard ones, with a barrier of
  weight 1); the barrier's weight is an option; a kNN graph is made symmetric and steps shortened
  where the theorem's condition fails, the code's directed graph being an option.
* `laplacian_shot`: Ziko et al., arXiv:2006.15486, fixed prototypes, with their rectification.
* For comparison: `simpleshot` (arXiv:1911.04623), `bdcspn` (arXiv:1911.10713), `tim` by gradient
  and in closed form (arXiv:2008.11297), `alpha_tim` (arXiv:2204.11181), `pt_map`
  (arXiv:2006.03806; its transport is ott-jax's), `label_propagation` (Zhou et al. 2004).

Features come as they are; `preprocess` has the field's transforms. Hyperparameters are to be
chosen on validation classes, which `evaluate.sweep` does over the same episodes in one call.
"""
