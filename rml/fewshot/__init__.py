"""Few-shot classification of frozen features, most of it transductive.

Every method is `method(support, support_labels, query, *, num_classes, ...)` to probabilities of
the queries, and a row of `METHODS`; `sample_episodes` draws tasks, `evaluate_episodes` solves
thousands of them in one call and `search` chooses options on them.

* `transductive_clustering`: Ziko et al., Transductive Few-Shot Learning: Clustering is All You
  Need?, arXiv:2106.09516. Prototype costs (K-means, K-modes; squared Euclidean, cosine), Laplacian
  term, support constraints and entropy barrier, minimised by the concave-convex bound optimiser;
  `solver` has the energy, `bound` says why it falls. `kmeans` and `kmodes` are its cases without
  the Laplacian term, `trajectory` follows its energy. `cluster` is the same optimiser for many
  points without labels. Model and optimiser are those of the summary and public code ("SLK") and
  of its predecessor Laplacian K-modes (arXiv:1810.13044). Differences: prototypes follow the soft
  assignments, so that they minimise the same energy (the code uses hard ones, with a barrier of
  weight 1); the barrier's weight is an option; a kNN graph is made symmetric and steps shortened
  where the theorem's condition fails, the code's directed graph being an option.
* `laplacian_shot`: Ziko et al., arXiv:2006.15486, fixed prototypes, with their rectification.
* For comparison: `simple_shot` (arXiv:1911.04623), fine-tuned heads `linear_head` and `cosine_head`
  (Baseline and Baseline++ of arXiv:1904.04232), `bd_cspn` (arXiv:1911.10713), `tim` by gradient
  and `tim_adm` in closed form (arXiv:2008.11297), `alpha_tim` (arXiv:2204.11181), `pt_map`
  (arXiv:2006.03806; its transport is ott-jax's), `label_propagation` (Zhou et al. 2004).

Features come as they are; `transform` has the field's transforms. Hyperparameters are to be
chosen on validation classes: `sweep` evaluates many over the same episodes in one call.
"""

from rml.fewshot.alpha_tim import alpha_tim
from rml.fewshot.bdcspn import bd_cspn, rectify_prototypes
from rml.fewshot.clustering import cluster
from rml.fewshot.episodes import (
    ClassIndex,
    Episodes,
    Setting,
    class_index,
    require_classes,
    sample_episodes,
)
from rml.fewshot.evaluate import evaluate_episodes, mean_and_interval, sweep
from rml.fewshot.heads import cosine_head, linear_head
from rml.fewshot.kmeans import hard_kmeans, soft_kmeans
from rml.fewshot.kmodes import k_modes
from rml.fewshot.label_propagation import label_propagation
from rml.fewshot.laplacian_shot import laplacian_shot
from rml.fewshot.methods import METHODS, TITLES, find_method
from rml.fewshot.preprocess import preprocessed, transform, transform_episode
from rml.fewshot.pt_map import pt_map
from rml.fewshot.search import Choice, Search, accuracies, choices, combinations, search
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.tim import tim, tim_adm
from rml.fewshot.trajectory import (
    Picture,
    largest_increase,
    picture,
    solve_episode,
    trajectories,
)
from rml.fewshot.transductive_clustering import Solution, solve, transductive_clustering

__all__ = [
    "METHODS",
    "TITLES",
    "Choice",
    "ClassIndex",
    "Episodes",
    "Picture",
    "Search",
    "Setting",
    "Solution",
    "accuracies",
    "alpha_tim",
    "bd_cspn",
    "choices",
    "class_index",
    "cluster",
    "combinations",
    "cosine_head",
    "evaluate_episodes",
    "find_method",
    "hard_kmeans",
    "k_modes",
    "label_propagation",
    "laplacian_shot",
    "largest_increase",
    "linear_head",
    "mean_and_interval",
    "picture",
    "preprocessed",
    "pt_map",
    "rectify_prototypes",
    "require_classes",
    "sample_episodes",
    "search",
    "simple_shot",
    "soft_kmeans",
    "solve",
    "solve_episode",
    "sweep",
    "tim",
    "tim_adm",
    "trajectories",
    "transductive_clustering",
    "transform",
    "transform_episode",
]
