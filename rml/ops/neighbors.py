"""Sparse nearest-neighbour graphs, exact in blocks or approximate by faiss."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.ops.topk import Metric, check_metric, topk


class NeighborGraph(NamedTuple):
    """A weighted graph in which every point has the same number of edges, some of weight 0.

    Attributes:
      indices: The neighbours of each point.
      weights: The weights of the edges to them.
    """

    indices: Int[Array, "n k"]
    weights: Float[Array, "n k"]


def knn_graph(
    x: Float[Array, "n d"],
    *,
    k: int,
    metric: Metric = "euclidean",
    bandwidth: float | None = None,
    block: int = 1024,
    approximate: bool = False,
) -> NeighborGraph:
    """Builds the directed graph from every point to its k nearest others, nearest first.

    Args:
      x: The points.
      k: Neighbours of each point, itself not among them.
      metric: "euclidean", "cosine" or "dot".
      bandwidth: Width σ of Gaussian weights exp(-d²/2σ²) of Euclidean distances; without it
        every weight is 1.
      block: Points handled at a time; memory does not grow with n² but the time does.
      approximate: Search a graph index of faiss (HNSW) instead, which misses a few neighbours and
        runs on the host.

    Returns:
      The graph. A point that has fewer neighbours, such as one with NaN, is its own with weight 0.

    Raises:
      ValueError: If `k` is not between 1 and n - 1, the metric is unknown, or `bandwidth` is not
        positive or given with another metric.
      ImportError: If `approximate` and faiss is not installed.
    """
    if bandwidth is not None and (bandwidth <= 0 or metric != "euclidean"):
        raise ValueError(
            f"bandwidth must be positive and the metric 'euclidean', got {bandwidth} and {metric!r}"
        )
    check_metric(metric)
    if approximate:
        distances, indices = _faiss(x, k, metric)
    else:
        distances, indices = topk(x, x, k=k, metric=metric, block=block, exclude_self=True)
    if bandwidth is None:
        weights = jnp.ones_like(distances)
    else:
        weights = jnp.exp(-((distances / bandwidth) ** 2) / 2)
    found, own = indices >= 0, jnp.arange(len(indices), dtype=indices.dtype)[:, None]
    return NeighborGraph(jnp.where(found, indices, own), jnp.where(found, weights, 0))


def _faiss(x: Array, k: int, metric: Metric) -> tuple[Array, Array]:
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "approximate neighbours need faiss; install it with: pip install faiss-cpu"
        ) from None
    if not 1 <= k < x.shape[0]:
        raise ValueError(f"k must be between 1 and the {x.shape[0] - 1} other points, got {k}")
    rows = np.array(x, np.float32, order="C")
    if metric == "cosine":
        faiss.normalize_L2(rows)
    inner = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWFlat(rows.shape[1], 32, inner)
    index.hnsw.efSearch = max(64, 2 * k)
    index.add(rows)
    values, found = index.search(rows, k + 1)
    # A point need not find itself, nor first: where it does not, the last neighbour goes.
    own = found == np.arange(len(rows))[:, None]
    own[~own.any(axis=1), -1] = True
    values, found = (a[~own].reshape(-1, k) for a in (values, found))
    if metric == "euclidean":
        values = np.sqrt(np.maximum(values, 0))
    return jnp.asarray(values), jnp.asarray(found, jnp.int32)


@partial(jax.jit, static_argnames="block")
def mutual(graph: NeighborGraph, *, block: int = 1024) -> NeighborGraph:
    """Makes the symmetric graph of the edges that run both ways; the others get weight 0.

    Args:
      graph: A directed graph.
      block: Points handled at a time.

    Returns:
      A graph of the same shape, each weight the lesser of the two directions.
    """

    def row(item: tuple[Array, Array, Array]) -> Array:
        here, near, weight = item
        back = jnp.where(graph.indices[near] == here, graph.weights[near], 0)
        return jnp.minimum(weight, jnp.max(back, axis=1))

    points = jnp.arange(graph.indices.shape[0])
    size = max(1, min(block, points.shape[0]))
    weights = jax.lax.map(row, (points, *graph), batch_size=size)
    return graph._replace(weights=weights)


def union(graph: NeighborGraph) -> NeighborGraph:
    """Makes the symmetric graph of the edges that run at least one way; built on the host.

    Args:
      graph: A directed graph.

    Returns:
      A graph as wide as the largest degree, each weight the greater of the two directions;
      a point with fewer neighbours is its own with weight 0.
    """
    from scipy import sparse

    n, k = graph.indices.shape
    row = np.repeat(np.arange(n), k)
    entries = np.asarray(graph.weights).ravel(), (row, np.asarray(graph.indices).ravel())
    directed = sparse.coo_array(entries, shape=(n, n)).tocsr()
    both = directed.maximum(directed.T).tocsr()
    degree = np.diff(both.indptr)
    indices = np.repeat(np.arange(n)[:, None], max(degree.max(), 1), axis=1)
    weights = np.zeros(indices.shape, both.dtype)
    used = np.arange(indices.shape[1]) < degree[:, None]
    indices[used], weights[used] = both.indices, both.data
    return NeighborGraph(jnp.asarray(indices, jnp.int32), jnp.asarray(weights))


def with_self_loops(graph: NeighborGraph) -> NeighborGraph:
    """Adds to each point an edge to itself as heavy as its other edges together.

    The matrix of a symmetric graph is then diagonally dominant, hence positive semidefinite, as
    the bound optimisers of Laplacian-regularised clustering require.

    Args:
      graph: A graph with weights that are not negative.

    Returns:
      A graph with one more neighbour for each point.
    """
    own = jnp.arange(graph.indices.shape[0], dtype=graph.indices.dtype)[:, None]
    degree = jnp.sum(graph.weights, axis=1, keepdims=True)
    return NeighborGraph(
        jnp.concatenate([graph.indices, own], 1), jnp.concatenate([graph.weights, degree], 1)
    )
