"""Clustering of many points without labels: K-means and its Laplacian-regularised form."""

from rml.fewshot.clustering.cluster import Clustering, cluster
from rml.fewshot.clustering.graph import neighbor_graph
from rml.fewshot.clustering.mini_batch import mini_batch
from rml.fewshot.clustering.mixture import gaussian_mixture
from rml.fewshot.clustering.starts import kmeans_parallel, kmeans_plus_plus, random_rows
from rml.fewshot.clustering.timing import iteration_seconds

__all__ = [
    "Clustering",
    "cluster",
    "gaussian_mixture",
    "iteration_seconds",
    "kmeans_parallel",
    "kmeans_plus_plus",
    "mini_batch",
    "neighbor_graph",
    "random_rows",
]
