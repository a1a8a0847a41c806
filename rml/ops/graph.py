"""Nearest-neighbour graphs of small sets, as dense matrices."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops.pairwise import squared_euclidean


def nearest(
    distances: Float[Array, "n n"], *, k: int, axis: Literal[0, 1] = 1
) -> Float[Array, "n n"]:
    """Marks the `k` nearest others of every point: 1 at [p, q] where q is one of p's, else 0.

    Points at equal distance count as one, so that a row has more than `k` ones where distances
    are tied, and the graph does not depend on the order of points.

    Args:
      distances: Distances between all points; the diagonal is ignored.
      k: Neighbours of a point, itself not counted.
      axis: Axis along which a point's neighbours lie; 0 gives the transpose of the graph where
        distances are symmetric.

    Returns:
      The directed graph.

    Raises:
      ValueError: If `k` is not between 1 and n - 1.
    """
    n = distances.shape[0]
    if not 1 <= k <= n - 1:
        raise ValueError(f"k must be between 1 and the {n - 1} other points, got {k}")
    others = ~jnp.eye(n, dtype=bool)
    distances = jnp.where(others, distances, jnp.inf)
    # For the small k of such graphs, k passes of a minimum are faster than a sort on CPU.
    reach = jnp.full((), -jnp.inf, distances.dtype)
    for _ in range(k):
        reach = jnp.min(jnp.where(distances > reach, distances, jnp.inf), axis, keepdims=True)
    return ((distances <= reach) & others).astype(distances.dtype)


def symmetrize(affinity: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Computes the symmetric part (W + Wᵀ) / 2, which has the quadratic form of W itself."""
    return (affinity + affinity.T) / 2


def knn_affinity(x: Float[Array, "n d"], *, k: int, symmetric: bool = True) -> Float[Array, "n n"]:
    """Computes affinities of the k-nearest-neighbour graph in Euclidean distance.

    Args:
      x: Points.
      k: Neighbours of a point, itself not counted; points tied in distance count as one.
      symmetric: Weigh an edge 1 if each end is a neighbour of the other, 1/2 if only one is;
        otherwise w[p, q] is 1 where q is a neighbour of p, whatever p is to q.

    Returns:
      Affinities with a diagonal of zeros.

    Raises:
      ValueError: If `k` is not between 1 and n - 1.
    """
    graph = nearest(squared_euclidean(x, x), k=k)
    return symmetrize(graph) if symmetric else graph
