"""The table of few-shot methods, all of one signature."""

from collections.abc import Callable, Mapping

from jaxtyping import Array

from rml.errors import unknown
from rml.fewshot.alpha_tim import alpha_tim
from rml.fewshot.bdcspn import bd_cspn
from rml.fewshot.heads import cosine_head, linear_head
from rml.fewshot.kmeans import hard_kmeans, soft_kmeans
from rml.fewshot.kmodes import k_modes
from rml.fewshot.label_propagation import label_propagation
from rml.fewshot.laplacian_shot import laplacian_shot
from rml.fewshot.pt_map import pt_map
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.tim import tim, tim_adm
from rml.fewshot.transductive_clustering import transductive_clustering

METHODS: Mapping[str, Callable[..., Array]] = {
    "simple_shot": simple_shot,
    "linear_head": linear_head,
    "cosine_head": cosine_head,
    "soft_kmeans": soft_kmeans,
    "hard_kmeans": hard_kmeans,
    "k_modes": k_modes,
    "laplacian_shot": laplacian_shot,
    "transductive_clustering": transductive_clustering,
    "tim": tim,
    "tim_adm": tim_adm,
    "alpha_tim": alpha_tim,
    "bd_cspn": bd_cspn,
    "pt_map": pt_map,
    "label_propagation": label_propagation,
}
"""Functions `method(support, support_labels, query, *, num_classes, ...)` to probabilities."""

TITLES: Mapping[str, str] = {
    "simple_shot": "SimpleShot",
    "linear_head": "linear head (Baseline)",
    "cosine_head": "cosine head (Baseline++)",
    "soft_kmeans": "soft K-means",
    "hard_kmeans": "hard K-means",
    "k_modes": "K-modes",
    "laplacian_shot": "LaplacianShot",
    "transductive_clustering": "regularised (full)",
    "tim": "TIM-GD",
    "tim_adm": "TIM-ADM",
    "alpha_tim": "α-TIM",
    "bd_cspn": "BD-CSPN",
    "pt_map": "PT-MAP",
    "label_propagation": "label propagation",
}
"""Names of the methods for tables and figures."""


def find_method(name: str) -> Callable[..., Array]:
    """Finds a method by its name.

    Raises:
      UserError: There is no such method.
    """
    if name not in METHODS:
        raise unknown("few-shot method", name, METHODS)
    return METHODS[name]
