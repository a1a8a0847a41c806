"""Work that a mesh shares out: clusterings and episodes, by one process or by several."""

import jax
import jax.numpy as jnp
import numpy as np

from rml.fewshot import sample_episodes
from rml.fewshot.clustering import cluster, mini_batch
from rml.fewshot.evaluate import evaluate_episodes
from rml.fewshot.kmeans import soft_kmeans
from rml.ops.neighbors import knn_graph, mutual, with_self_loops


def clusterings(mesh) -> list[np.ndarray]:
    """Every array that three ways to cluster find."""
    x = 4 * jax.random.normal(jax.random.key(0), (6, 3))[jnp.arange(80) % 6]
    x += jax.random.normal(jax.random.key(1), x.shape)
    soft = dict(
        graph=with_self_loops(mutual(knn_graph(x, k=4))), laplacian_weight=0.5, temperature=0.3,
        support=3,
    )  # fmt: skip
    options = dict(num_clusters=6, key=jax.random.key(2), max_iterations=8, block=16)
    ways = ({}, {"start": "k-means||"}, soft)
    return [
        np.asarray(leaf)
        for way in ways
        for leaf in jax.tree.leaves(cluster(x, mesh=mesh, **options, **way))
    ]


def prototypes(mesh) -> np.ndarray:
    """Prototypes that are learned in small batches."""
    x = jax.random.normal(jax.random.key(1), (80, 3))
    options = dict(key=jax.random.key(2), iterations=3, batch_size=16)
    return np.asarray(mini_batch(x, x[:6], mesh=mesh, **options).prototypes)


def accuracies(mesh) -> np.ndarray:
    """Accuracy of soft k-means on each of 37 episodes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 12)
    x = rng.standard_normal((8, 16))[labels] + rng.standard_normal((len(labels), 16))
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    labels = jnp.asarray(labels)
    drawn = sample_episodes(jax.random.key(0), labels, episodes=37, ways=4, shots=1, queries=5)
    return np.asarray(evaluate_episodes(soft_kmeans, x, drawn, ways=4, mesh=mesh))
