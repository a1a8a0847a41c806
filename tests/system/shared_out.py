"""Work that a mesh shares out: clusterings, episodes, features and how they are judged."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rml.encoder import ImageEmbedder
from rml.evaluation import knn_predict, linear_probe
from rml.fewshot import sample_episodes
from rml.fewshot.clustering import cluster, mini_batch
from rml.fewshot.evaluate import evaluate_episodes
from rml.fewshot.kmeans import soft_kmeans
from rml.models import MLP
from rml.ops.neighbors import knn_graph, mutual, with_self_loops
from rml.training.mesh import place


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


def judgements(mesh) -> list[np.ndarray]:
    """Features of images by an encoder, votes of their neighbours, and a probe.

    The encoder's parameters are split as the mesh says, and once whole on one device.
    """
    model = MLP(hidden=(32,), features=16)
    images = np.random.default_rng(0).integers(0, 256, (75, 4, 4, 1)).astype(np.uint8)
    init = partial(model.init, jax.random.key(1))
    start = variables = nn.meta.unbox(init(jnp.zeros((1, 4, 4, 1))))
    if mesh is not None:
        boxed = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32))
        places, _ = place(boxed, mesh)
        variables = jax.tree.map(
            lambda leaf, own: jax.make_array_from_callback(leaf.shape, own, lambda i: leaf[i]),
            variables, places,
        )  # fmt: skip

    def embed(variables):
        encode = ImageEmbedder(lambda v, x: model.apply(v, x / 255), variables, 32, mesh)
        return jnp.asarray(encode(images))

    features, labels = embed(variables), jnp.asarray(images[:, 0, 0, 0] % 3, jnp.int32)
    parts = features[:50], labels[:50], features[50:]
    votes = knn_predict(*parts, num_classes=3, k=5, mesh=mesh)
    probe = linear_probe(
        *parts, labels[50:], num_classes=3, key=jax.random.key(0), l2_grid=(0.1, 1.0), mesh=mesh
    )
    whole = embed(jax.device_put(start, jax.local_devices()[0]))
    found = features, votes, probe.weights, probe.held_out_accuracy, probe.accuracy, whole
    return [np.asarray(array) for array in found]
