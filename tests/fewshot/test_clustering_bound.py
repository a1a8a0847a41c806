"""The sparse bound optimiser and its graphs, beside dense float64 NumPy."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax, xlogy
from sklearn.neighbors import NearestNeighbors

from rml.fewshot.clustering import cluster
from rml.ops.neighbors import NeighborGraph, knn_graph, mutual, union, with_self_loops

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((40, 3)) + 2 * RNG.integers(0, 3, (40, 1))).astype(np.float32)


def dense(graph):
    n = graph.indices.shape[0]
    w = np.zeros((n, n))
    np.add.at(w, (np.arange(n)[:, None], np.asarray(graph.indices)), np.asarray(graph.weights))
    return w


def energy(x, c, z, w, lam, tau):
    far = ((x[:, None] - c) ** 2).sum(2)
    return np.sum(z * far) + tau * np.sum(xlogy(z, z)) + lam / 2 * np.sum(w * (1 - z @ z.T))


def reference(x, c, w, lam, tau, updates, iterations):
    """The dense optimiser, every point with every cluster."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    z, energies = np.zeros((len(x), len(c))), []
    for _ in range(iterations):
        far = ((x[:, None] - c) ** 2).sum(2)
        for _ in range(updates):
            z = softmax((lam * w @ z - far) / tau, axis=1)
        energies.append(energy(x, c, z, w, lam, tau))
        c = z.T @ x / z.sum(0)[:, None]
    return z, c, energies


def matrix(found, k):
    z = np.zeros((found.labels.shape[0], k))
    np.add.at(
        z, (np.arange(len(z))[:, None], np.asarray(found.clusters)), np.asarray(found.memberships)
    )
    return z


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_full_support_is_the_dense_optimiser(lam):
    graph = with_self_loops(mutual(knn_graph(jnp.asarray(X), k=5, block=64), block=64))
    found = cluster(
        jnp.asarray(X),
        num_clusters=4,
        start=jnp.asarray(X[:4]),
        graph=graph,
        laplacian_weight=lam,
        temperature=0.8,
        support=4,
        assignment_updates=3,
        max_iterations=6,
        tolerance=0.0,
        block=16,
    )
    z, c, energies = reference(X, X[:4], dense(graph), lam, 0.8, 3, 6)
    np.testing.assert_allclose(found.energies, energies, rtol=1e-5)
    np.testing.assert_allclose(found.prototypes, c, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(matrix(found, 4), z, atol=1e-4)
    np.testing.assert_array_equal(found.labels, z.argmax(1))


@pytest.mark.slow
def test_without_graph_and_in_the_limit_of_no_temperature_it_is_k_means():
    options = {"num_clusters": 4, "start": jnp.asarray(X[:4]), "tolerance": 0.0, "block": 16}
    hard = cluster(jnp.asarray(X), **options)
    cold = cluster(jnp.asarray(X), temperature=1e-5, support=4, assignment_updates=1, **options)
    np.testing.assert_array_equal(hard.labels, cold.labels)
    np.testing.assert_allclose(hard.prototypes, cold.prototypes, atol=1e-4)
    np.testing.assert_allclose(hard.inertia, cold.inertia, rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    support=st.sampled_from([1, 2, 5]),
    lam=st.sampled_from([0.1, 1.0, 10.0]),
    tau=st.sampled_from([0.0, 0.5]),
    neighbours=st.sampled_from([2, 6]),
    seed=st.integers(0, 99),
)
def test_energy_never_increases_on_positive_semidefinite_graphs(
    support, lam, tau, neighbours, seed
):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((30, 2)).astype(np.float32)
    graph = with_self_loops(
        mutual(knn_graph(jnp.asarray(x), k=neighbours, bandwidth=1.0, block=64), block=64)
    )
    support = support if tau else 1
    found = cluster(
        jnp.asarray(x),
        num_clusters=5,
        start=jnp.asarray(x[:5]),
        graph=graph,
        laplacian_weight=jnp.asarray(lam),
        temperature=tau,
        support=support,
        assignment_updates=2,
        max_iterations=12,
        tolerance=0.0,
        block=16,
    )
    used = np.asarray(found.energies, np.float64)[: int(found.iterations)]
    assert (np.diff(used) <= 2e-6 * (1 + np.abs(used[:-1]))).all(), used
    z = matrix(found, 5)
    np.testing.assert_allclose(z.sum(1), 1, atol=1e-6)
    assert ((z > 0).sum(1) <= support).all()
    # The last energy is that of the result, but for the last prototype update, which lowers it.
    after = energy(x, np.asarray(found.prototypes, np.float64), z, dense(graph), lam, tau)
    assert after <= used[-1] + 1e-5 * (1 + abs(used[-1]))


@pytest.mark.slow
def test_a_graph_that_is_not_semidefinite_can_raise_the_energy():
    """Two mutual neighbours half-way between two prototypes swap clusters for ever."""
    x = jnp.asarray([[-0.01], [0.01], [-1.0], [1.0]])
    graph = NeighborGraph(jnp.asarray([[1], [0], [2], [3]]), jnp.asarray([[1.0], [1], [0], [0]]))
    energies = {}
    for name, g in (("bare", graph), ("loops", with_self_loops(graph))):
        found = cluster(
            x,
            num_clusters=2,
            start=jnp.asarray([[-1.0], [1.0]]),
            graph=g,
            laplacian_weight=1.0,
            assignment_updates=1,
            max_iterations=4,
            tolerance=-1.0,
        )
        energies[name] = np.asarray(found.energies)
    assert (np.diff(energies["loops"]) <= 0).all()
    assert (np.diff(energies["bare"]) > 1e-4).any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_graph_equals_scikit_learn(metric):
    x = np.random.default_rng(1).standard_normal((70, 4)).astype(np.float32)
    found = knn_graph(jnp.asarray(x), k=5, metric=metric, block=32)
    theirs = NearestNeighbors(n_neighbors=5, metric=metric).fit(x).kneighbors()[1]
    np.testing.assert_array_equal(found.indices, theirs)
    np.testing.assert_array_equal(found.weights, 1)


def test_gaussian_weights_and_duplicates():
    x = np.concatenate([X[:10], X[:10]])
    found = knn_graph(jnp.asarray(x), k=3, bandwidth=0.7, block=8)
    distances, indices = NearestNeighbors(n_neighbors=3).fit(x).kneighbors()
    np.testing.assert_array_equal(found.indices[:, 0], (np.arange(20) + 10) % 20)
    np.testing.assert_allclose(found.weights, np.exp(-(distances**2) / (2 * 0.49)), rtol=1e-4)
    assert indices.shape == found.indices.shape


def test_symmetric_graphs_equal_dense_ones():
    directed = knn_graph(jnp.asarray(X), k=4, bandwidth=1.0, block=64)
    w = dense(directed)
    both, either = dense(mutual(directed, block=16)), dense(union(directed))
    assert (w != w.T).any()
    np.testing.assert_array_equal(both, np.minimum(w, w.T))
    np.testing.assert_array_equal(either, np.maximum(w, w.T))
    looped = dense(with_self_loops(mutual(directed, block=16)))
    np.testing.assert_allclose(np.diag(looped), both.sum(1), rtol=1e-6)
    assert np.linalg.eigvalsh(looped).min() > -1e-6
    assert np.linalg.eigvalsh(both).min() < -1e-2
    drawn = np.random.default_rng(3).uniform(1, 2, directed.weights.shape)
    uneven = directed._replace(weights=jnp.asarray(drawn, jnp.float32))
    w = dense(uneven)
    np.testing.assert_array_equal(dense(mutual(uneven, block=16)), np.minimum(w, w.T))
    np.testing.assert_array_equal(dense(union(uneven)), np.maximum(w, w.T))


@pytest.mark.parametrize("options", [{}, {"bandwidth": 1.5}, {"metric": "cosine"}], ids=str)
def test_a_point_without_neighbours_is_its_own_with_weight_0(options):
    x = X[:6].copy()
    x[2] = np.nan
    graph = knn_graph(jnp.asarray(x), k=5, **options)
    np.testing.assert_array_equal(graph.indices[2], 2)
    assert not np.asarray(graph.weights[2]).any()
    # The others find each other, and stand in the place of the fifth themselves.
    rest = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(graph.indices[rest, 4], rest)
    np.testing.assert_array_equal(np.sort(graph.indices[rest], axis=1), np.tile(rest, (5, 1)))
    assert (np.asarray(graph.weights[rest, :4]) > 0).all()
    w = dense(graph)
    np.testing.assert_array_equal(dense(mutual(graph)), np.minimum(w, w.T))
    np.testing.assert_array_equal(dense(union(graph)), np.maximum(w, w.T))
    assert not w[2].any()
    assert not w[:, 2].any()


@pytest.mark.slow
def test_approximate_graph_finds_nearly_all_neighbours():
    pytest.importorskip("faiss")
    x = jnp.asarray(np.random.default_rng(2).standard_normal((500, 6)), jnp.float32)
    for metric in ("euclidean", "cosine"):
        exact = knn_graph(x, k=5, metric=metric)
        found = knn_graph(x, k=5, metric=metric, approximate=True)
        assert not (np.asarray(found.indices) == np.arange(500)[:, None]).any()
        hits = (np.asarray(found.indices)[:, :, None] == np.asarray(exact.indices)[:, None]).any(1)
        assert hits.mean() > 0.98


def test_missing_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        knn_graph(jnp.asarray(X), k=3, approximate=True)


def test_mistakes_are_named(unchecked):
    with pytest.raises(ValueError, match="between 1 and the 39 keys available, got 40"):
        knn_graph(jnp.asarray(X), k=40)
    for approximate in (False, True):
        with pytest.raises(ValueError, match="'euclidean' or 'dot', got 'manhattan'"):
            knn_graph(jnp.asarray(X), k=3, metric="manhattan", approximate=approximate)
    with pytest.raises(ValueError, match=r"got 1\.0 and 'cosine'"):
        knn_graph(jnp.asarray(X), k=3, metric="cosine", bandwidth=1.0)
    graph = knn_graph(jnp.asarray(X[:10]), k=3)
    with pytest.raises(ValueError, match=r"each of 40 points, got shape \(10, 3\)"):
        cluster(jnp.asarray(X), num_clusters=2, key=jax.random.key(0), graph=graph)
