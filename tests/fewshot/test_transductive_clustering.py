"""The full model against float64 loops in NumPy, scikit-learn's K-means, and its own limits."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from rml.errors import UserError
from rml.fewshot.kmeans import hard_kmeans, soft_kmeans
from rml.fewshot.kmodes import k_modes
from rml.fewshot.transductive_clustering import solve, transductive_clustering
from rml.ops.graph import knn_affinity

KINDS = list(product(["mean", "mode"], ["squared_euclidean", "cosine"]))
OPTIONS = dict(laplacian_weight=0.05, temperature=0.1, bandwidth=0.9)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference(x, m, labels, w, lam, t, prototype, distance, sigma, steps, inner):
    """The algorithm as written, on explicit features and prototypes, with full steps."""
    x, m = np.asarray(x, np.float64), np.asarray(m, np.float64)
    if distance == "cosine":
        x, m = unit(x), unit(m)
    n, s = len(x), len(labels)

    def squares():
        return ((x[:, None] - m[None]) ** 2).sum(2)

    def unary():
        if prototype == "mode":
            return -np.exp(-squares() / (2 * sigma**2))
        return 1 - x @ m.T if distance == "cosine" else squares()

    def settle(z):
        for _ in range(inner):
            z = softmax((lam * w @ z - unary()) / t)
            z[:s] = np.eye(len(m))[labels]
        barrier = t * np.sum(np.where(z > 0, z * np.log(np.maximum(z, 1e-300)), 0))
        return z, np.sum(z * unary()) + barrier - lam / 2 * np.sum(z * (w @ z))

    z = softmax(-unary() / t)
    z[:s] = np.eye(len(m))[labels]
    z, value = settle(z)
    energies = [value]
    for _ in range(steps):
        weight = z * np.exp(-squares() / (2 * sigma**2)) if prototype == "mode" else z
        m = weight.T @ x / weight.sum(0)[:, None]
        m = unit(m) if distance == "cosine" else m
        z, value = settle(z)
        energies.append(value)
    assert n == len(z)
    return z, m, energies


@pytest.mark.slow
@pytest.mark.parametrize(("prototype", "distance"), KINDS)
def test_matches_the_float64_loops(episode, prototype, distance):
    support, labels, query, _ = episode(3)
    x = jnp.concatenate([support, query])
    start = jnp.stack([support[labels == k].mean(0) for k in range(3)])
    w = knn_affinity(x, k=2)
    found = solve(
        x, start, support_labels=labels, affinity=w, prototype=prototype, distance=distance,
        damped=False, steps=6, inner_steps=5, tolerance=0.0, inner_tolerance=-1.0, **OPTIONS,
    )  # fmt: skip
    z, m, energies = reference(
        x, start, np.asarray(labels), np.asarray(w, np.float64), 0.05, 0.1,
        prototype, distance, 0.9, int(found.iterations), 5,
    )  # fmt: skip
    assert found.iterations >= 2
    np.testing.assert_allclose(found.assignments, z, atol=1e-4)
    np.testing.assert_allclose(found.prototypes, m, atol=1e-4)
    np.testing.assert_allclose(found.energies[: len(energies)], energies, rtol=1e-5, atol=1e-5)
    assert jnp.all(found.energies[len(energies) :] == found.energies[len(energies) - 1])


@partial(jax.jit, static_argnames=("prototype", "distance"))
def solved(x, start, labels, w, lam, t, sigma, prototype, distance):
    return solve(
        x, start, support_labels=labels, affinity=w, laplacian_weight=lam, temperature=t,
        bandwidth=sigma, prototype=prototype, distance=distance, tolerance=0.0, steps=15,
    )  # fmt: skip


@pytest.mark.slow
@settings(max_examples=40, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    lam=st.floats(0, 3),
    t=st.floats(0.05, 2),
    sigma=st.floats(0.3, 3),
    neighbors=st.integers(1, 4),
)
def test_energy_never_rises(kind, seed, lam, t, sigma, neighbors):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.standard_normal((14, 4)))
        labels = jnp.arange(3)
        found = solved(x, x[:3], labels, knn_affinity(x, k=neighbors), lam, t, sigma, *kind)
        energies = np.asarray(found.energies)
        assert np.all(np.isfinite(energies))
        assert np.max(np.diff(energies)) <= 1e-10 * (1 + np.max(np.abs(energies)))
        np.testing.assert_array_equal(found.assignments[:3], np.eye(3))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
def test_without_the_laplacian_term_it_is_soft_k_means(double, episode, shift, distance):
    support, labels, query, _ = episode(1)
    # In float32 rounding decides which of them stops a round earlier.
    support, query = support.astype(jnp.float64), query.astype(jnp.float64)
    options = dict(num_classes=3, shift=shift, distance=distance)
    model = jax.jit(
        lambda lam: transductive_clustering(support, labels, query, laplacian_weight=lam, **options)
    )
    soft = jax.jit(partial(soft_kmeans, **options))(support, labels, query)
    np.testing.assert_allclose(model(0.0), soft, rtol=1e-6, atol=1e-7)
    other = model(0.05)
    assert np.max(np.abs(other - soft)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_hard_limit_is_scikit_learns_k_means(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 5)).astype(np.float32)
    start = x[:4]
    expected = KMeans(4, init=start, n_init=1, tol=0, algorithm="lloyd", max_iter=100).fit(x)
    found = jax.jit(partial(solve, hard=True, steps=100))(x, start)
    np.testing.assert_array_equal(np.argmax(found.assignments, 1), expected.labels_)
    np.testing.assert_allclose(found.prototypes, expected.cluster_centers_, atol=1e-5)
    np.testing.assert_allclose(found.energies[-1], expected.inertia_, rtol=1e-5)
    # One round is one Lloyd iteration; ours counts the one that finds nothing changed too.
    assert abs(int(found.iterations) - expected.n_iter_) <= 1


@pytest.mark.slow
def test_a_low_temperature_approaches_the_hard_limit(episode):
    support, labels, query, _ = episode(5)
    hard = hard_kmeans(support, labels, query, num_classes=3)
    gap = [
        np.max(np.abs(soft_kmeans(support, labels, query, num_classes=3, temperature=t) - hard))
        for t in (0.1, 1e-2, 1e-4)
    ]
    assert gap[0] > gap[1] >= gap[2]
    assert gap[2] < 1e-5


@pytest.mark.slow
def test_k_modes_is_the_full_model_of_modes_without_graph(episode):
    support, labels, query, _ = episode(2)
    options = dict(num_classes=3, bandwidth=0.8, temperature=0.05)
    modes = k_modes(support, labels, query, **options)
    full = transductive_clustering(
        support, labels, query, prototype="mode", laplacian_weight=0.0, **options
    )
    np.testing.assert_allclose(modes, full, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_empty_cluster_keeps_its_prototype():
    x = jnp.asarray([[0.0, 0], [0.1, 0], [0, 0.1], [0.1, 0.1]])
    found = solve(x, jnp.asarray([[0.0, 0.0], [90.0, 90.0]]), hard=True)
    np.testing.assert_allclose(found.prototypes[1], [90, 90], rtol=1e-6)
    np.testing.assert_array_equal(found.assignments[:, 0], 1)


@pytest.mark.slow
def test_the_graph_pulls_a_query_to_its_neighbours():
    # A query midway between both classes, next to two that are clearly of class 1.
    support = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
    query = jnp.asarray([[0.56, 0.5], [0.8, 0.3], [0.8, 0.35], [0.45, 0.9], [0.3, 0.95]])
    options = dict(num_classes=2, shift=False, temperature=0.5, neighbors=2, steps=1)
    model = jax.jit(
        lambda lam: transductive_clustering(
            support, jnp.asarray([0, 1]), query, laplacian_weight=lam, **options
        )
    )
    pulled, alone = model(0.5), model(0.0)
    assert pulled[0, 1] > alone[0, 1] + 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prototype="median"), "unknown prototype 'median'; did you mean 'mean'"),
        (dict(distance="cosin"), "unknown distance 'cosin'; did you mean 'cosine'"),
        (dict(prototype="mode"), "bandwidth must be given"),
        (dict(support_labels=jnp.array([1, 2])), "support_labels must lie between 0 and 1, .* 2$"),
        (dict(support_labels=jnp.array([-1, 1])), "support_labels must lie .* from -1 to 1"),
    ],
)
def test_wrong_options_of_solve_are_named(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        solve(jnp.ones((5, 2)), jnp.ones((2, 2)), **options)


@pytest.mark.parametrize(
    ("prototypes", "affinity", "message"),
    [
        ((2, 3), (5, 5), r"x \(5, 2\) as \[n, d\], prototypes \(2, 3\) as \[c, d\]"),
        ((2,), (5, 5), r"prototypes \(2,\) as \[c, d\]"),
        ((2, 2), (5, 4), r"affinity \(5, 4\) as \[n, n\]"),
        ((2, 2), (1, 1), r"affinity \(1, 1\) as \[n, n\]"),
    ],
)
def test_prototypes_and_affinities_of_other_points_are_refused(
    unchecked, prototypes, affinity, message
):
    with pytest.raises(ValueError, match=message):
        solve(jnp.ones((5, 2)), jnp.ones(prototypes), affinity=jnp.ones(affinity))


def test_wrong_options_of_the_method_are_named(unchecked, episode):
    support, labels, query, _ = episode()
    with pytest.raises(UserError, match="unknown graph 'directd'; did you mean 'directed'"):
        transductive_clustering(support, labels, query, num_classes=3, graph="directd")
    with pytest.raises(ValueError, match="between 1 and the 17 other points, got 18"):
        transductive_clustering(support, labels, query, num_classes=3, neighbors=18)


def test_more_clusters_than_points_are_named():
    with pytest.raises(ValueError, match="5 clusters need at least as many points, got 4"):
        solve(jnp.ones((4, 2)), jnp.ones((5, 2)))


@pytest.mark.slow
def test_points_of_half_precision_are_moved_in_float32(episode):
    """Far from the origin, where a difference of bfloat16 has no digits."""
    support, labels, query, _ = episode(0)
    x = (8 + 3 * jnp.concatenate([support, query])).astype(jnp.bfloat16)
    half, same = (
        solve(rows, rows[:3], support_labels=labels, temperature=0.5)
        for rows in (x, x.astype(jnp.float32))
    )
    np.testing.assert_allclose(half.assignments, same.assignments, atol=1e-5)
    np.testing.assert_allclose(half.prototypes, same.prototypes, rtol=1e-6)
