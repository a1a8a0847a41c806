"""Clustering of many points without labels: K-means and its Laplacian-regularised form."""

from rml.fewshot.clustering.cluster import Clustering as Clustering
from rml.fewshot.clustering.cluster import cluster as cluster
from rml.fewshot.clustering.mini_batch import mini_batch as mini_batch
from rml.fewshot.clustering.starts import kmeans_parallel as kmeans_parallel
from rml.fewshot.clustering.starts import kmeans_plus_plus as kmeans_plus_plus
from rml.fewshot.clustering.starts import random_rows as random_rows
