"""The kNN graph against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import kneighbors_graph

from rml.ops.graph import knn_affinity, nearest


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 8])
def test_equals_scikit_learn(k):
    x = np.asarray(jax.random.normal(jax.random.key(k), (9, 4)))
    expected = kneighbors_graph(x, k, include_self=False).toarray()
    np.testing.assert_array_equal(knn_affinity(jnp.asarray(x), k=k, symmetric=False), expected)
    np.testing.assert_array_equal(knn_affinity(jnp.asarray(x), k=k), (expected + expected.T) / 2)


@pytest.mark.slow
def test_ties_count_as_one_neighbour_and_do_not_depend_on_order():
    x = jnp.asarray([[0.0], [1.0], [-1.0], [3.0], [3.0], [3.0]])
    graph = knn_affinity(x, k=1, symmetric=False)
    np.testing.assert_array_equal(graph[0], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(graph[3], [0, 0, 0, 0, 1, 1])
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    permuted = knn_affinity(x[order], k=1, symmetric=False)
    np.testing.assert_array_equal(permuted, graph[order][:, order])


def test_neighbours_along_columns_are_those_of_the_transpose():
    distances = jax.random.uniform(jax.random.key(2), (7, 7))  # not symmetric
    along_columns = nearest(distances, k=2, axis=0)
    np.testing.assert_array_equal(along_columns, nearest(distances.T, k=2).T)
    np.testing.assert_array_equal(along_columns.sum(0), np.full(7, 2))


def test_a_point_is_never_its_own_neighbour():
    graph = knn_affinity(jnp.zeros((4, 2)), k=3, symmetric=False)
    np.testing.assert_array_equal(graph, 1 - np.eye(4))


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_points_are_named(k):
    with pytest.raises(ValueError, match=f"between 1 and the 3 other points, got {k}"):
        nearest(jnp.zeros((4, 4)), k=k)
