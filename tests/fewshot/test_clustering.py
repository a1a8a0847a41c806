"""K-means of many points: beside scikit-learn, on edge cases, in memory, over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from rml.fewshot.clustering import cluster, mini_batch
from rml.fewshot.clustering.assign import assign
from rml.fewshot.clustering.cluster import _solve
from rml.ops.neighbors import NeighborGraph

X = make_blobs(700, 5, centers=9, cluster_std=3.0, random_state=0)[0].astype(np.float32)
START = X[:9]
ALONE = NeighborGraph(jnp.arange(10)[:, None], jnp.zeros((10, 1)))  # ten points


def f64_inertia(x, prototypes, labels):
    x, prototypes = np.asarray(x, np.float64), np.asarray(prototypes, np.float64)
    return np.sum((x - prototypes[np.asarray(labels)]) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "iterations"), [(0.0, 100), (1e-3, 100), (0.0, 3)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_equals_scikit_learn_from_the_same_start(tolerance, iterations):
    ours = cluster(
        jnp.asarray(X),
        num_clusters=9,
        start=jnp.asarray(START),
        tolerance=tolerance,
        max_iterations=iterations,
        block=128,
    )
    theirs = KMeans(9, init=START, n_init=1, tol=tolerance, max_iter=iterations).fit(X)
    assert int(ours.iterations) == theirs.n_iter_
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.prototypes, theirs.cluster_centers_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=1e-5)
    used = np.asarray(ours.energies)
    assert np.isfinite(used[: theirs.n_iter_]).all()
    assert np.isnan(used[theirs.n_iter_ :]).all()


def test_a_far_origin_changes_nothing():
    # Multiples of 1/8 around 4096 are exact, so both problems are the same one moved.
    x = np.round(8 * X) / 8
    options = {"num_clusters": 9, "tolerance": 0.0, "block": 128}
    near = cluster(jnp.asarray(x), start=jnp.asarray(x[:9]), **options)
    far = cluster(jnp.asarray(x + 4096), start=jnp.asarray(x[:9] + 4096), **options)
    np.testing.assert_array_equal(near.labels, far.labels)
    np.testing.assert_allclose(near.inertia, far.inertia, rtol=1e-3)


@pytest.mark.slow
def test_empty_clusters_take_the_farthest_points_as_in_scikit_learn():
    start = START.copy()
    start[3:6] = 1e3 + np.arange(3)[:, None]  # three prototypes that no point is near to
    ours = cluster(
        jnp.asarray(X), num_clusters=9, start=jnp.asarray(start), tolerance=0.0, block=128
    )
    theirs = KMeans(9, init=start, n_init=1, tol=0, max_iter=100).fit(X)
    assert len(np.unique(ours.labels)) == 9
    # Which of the empty clusters takes which point is open, so clusters are matched by place.
    order, other = (
        np.lexsort(np.asarray(c).T.round(3)) for c in (ours.prototypes, theirs.cluster_centers_)
    )
    np.testing.assert_allclose(
        np.asarray(ours.prototypes)[order], theirs.cluster_centers_[other], rtol=1e-4, atol=1e-4
    )
    kept = cluster(
        jnp.asarray(X),
        num_clusters=9,
        start=jnp.asarray(start),
        tolerance=0.0,
        empty="keep",
        block=128,
    )
    np.testing.assert_array_equal(kept.prototypes[3:6], start[3:6])
    assert set(np.unique(kept.labels)) == {0, 1, 2, 6, 7, 8}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["k-means++", "k-means||", "random"])
def test_more_clusters_than_distinct_points(start):
    x = jnp.asarray(np.repeat(X[:4], 10, axis=0))
    found = cluster(x, num_clusters=12, start=start, key=jax.random.key(0), block=128)
    assert np.isfinite(found.prototypes).all()
    assert float(found.inertia) == 0
    same = np.asarray(found.labels).reshape(4, 10)
    assert (same == same[:, :1]).all()
    assert len(np.unique(same)) == 4


@pytest.mark.slow
def test_as_many_clusters_as_points():
    found = cluster(jnp.asarray(X[:12]), num_clusters=12, key=jax.random.key(0), block=128)
    assert sorted(np.asarray(found.labels)) == list(range(12))
    assert float(found.inertia) == 0


@pytest.mark.slow
@settings(max_examples=15)
@given(
    sizes=st.sampled_from([(6, 6, 4), (23, 5, 4), (23, 1, 64)]),  # each is compiled
    levels=st.sampled_from([2, 4, 1000]),  # few levels: duplicates and ties
    empty=st.sampled_from(["farthest", "keep"]),
    seed=st.integers(0, 99),
)
def test_energy_never_increases(sizes, levels, empty, seed):
    n, k, block = sizes
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, levels, (n, 2)) / levels).astype(np.float32)
    start = (rng.integers(0, levels, (k, 2)) / levels).astype(np.float32)
    found = cluster(
        jnp.asarray(x),
        num_clusters=k,
        start=jnp.asarray(start),
        tolerance=0.0,
        empty=empty,
        block=block,
        max_iterations=30,
    )
    energies = np.asarray(found.energies, np.float64)[: int(found.iterations)]
    path = np.append(energies, f64_inertia(x, found.prototypes, found.labels))
    assert (np.diff(path) <= 1e-6 * (1 + path[:-1])).all(), path
    squares = np.sum((x[:, None].astype(np.float64) - np.asarray(found.prototypes)) ** 2, axis=2)
    chosen = squares[np.arange(n), np.asarray(found.labels)]
    np.testing.assert_allclose(chosen, squares.min(axis=1), atol=1e-6)


@pytest.mark.slow
def test_many_starts_at_once_equal_one_after_another():
    starts = jnp.asarray(X[:18].reshape(2, 9, 5)).at[1, 4].set(1e3)  # one empty cluster

    def run(start):
        return cluster(jnp.asarray(X), num_clusters=9, start=start, tolerance=0.0, block=128)

    together = jax.jit(jax.vmap(run))(starts)
    for i in range(2):
        alone = run(starts[i])
        np.testing.assert_array_equal(together.labels[i], alone.labels)
        np.testing.assert_allclose(together.prototypes[i], alone.prototypes, rtol=1e-5, atol=1e-5)
        assert int(together.iterations[i]) == int(alone.iterations)


def test_ties_go_to_the_lower_prototype_and_offsets_are_those_of_the_labels():
    x = jnp.asarray([[0.0, 1], [2, 1], [1, 1], [4, 4]])
    prototypes = jnp.asarray([[2.0, 1], [0, 1], [0, 1]])
    found = assign(x, prototypes, block=3)
    assert found.labels.tolist() == [1, 0, 0, 0]
    assert found.distances.tolist() == [0, 0, 1, 13]
    assert found.counts.tolist() == [3, 1, 0]
    assert found.offsets.tolist() == [[1, 3], [0, 0], [0, 0]]


def _temporary(n, k, block):
    options = {
        "soft": False,
        "support": 1,
        "assignment_updates": 1,
        "max_iterations": 5,
        "tolerance": 1e-4,
        "reseed": True,
        "block": block,
        "spherical": False,
        "mesh": None,
    }
    x, c, zero = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 16), (k, 16), ()))
    program = _solve.lower(x, c, None, zero, zero, **options).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_is_linear_in_points_and_free_of_points_times_clusters():
    few, many = (_temporary(n, 64, 256) for n in (2**14, 2**17))
    per_point = (many - few) / (2**17 - 2**14)
    # Labels old and new, distances and where their order stands; not the 64 bytes of a point,
    # nor the 256 of its distances.
    assert 4 <= per_point <= 40
    more = _temporary(2**17, 512, 256)
    assert more - many < 4 * 4 * (512 - 64) * (256 + 16 * 8)  # tiles and sums, nothing of size n


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_cosine_is_spherical_k_means(temperature):
    """Assignments by the largest cosine, prototypes of unit length: in float64, both optimisers."""
    scale = np.random.default_rng(1).uniform(0.1, 9, (len(X), 1))
    x = jnp.asarray(scale * (X + 2), jnp.float32)
    unit = np.asarray(x, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = cluster(
        x, num_clusters=5, start=x[:5], metric="cosine", tolerance=0.0, temperature=temperature,
        assignment_updates=1 if temperature else None,
    )  # fmt: skip
    c = unit[:5]
    for _ in range(int(found.iterations)):
        labels = np.argmax(unit @ c.T, axis=1)
        c = np.stack([unit[labels == k].sum(0) for k in range(5)])
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.labels, np.argmax(unit @ c.T, axis=1))
    np.testing.assert_allclose(found.prototypes, c, atol=1e-5)
    cosines = np.sum(unit * c[np.asarray(found.labels)], axis=1)
    np.testing.assert_allclose(found.inertia, 2 * np.sum(1 - cosines), rtol=1e-4)
    energies = np.asarray(found.energies)[: int(found.iterations)]
    assert len(energies) > 2
    assert (np.diff(energies) <= 1e-6 * energies[:-1]).all()


@pytest.mark.slow
def test_points_that_cancel_out_leave_their_prototype():
    x = jnp.asarray([[1.0, 0], [-1, 0], [0, 2]])
    start = jnp.asarray([[0.0, -1], [0, 1]])
    found = cluster(x, num_clusters=2, start=start, metric="cosine", max_iterations=1)
    assert found.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(found.prototypes, start)


@pytest.mark.slow
def test_mini_batches_are_running_means():
    """The steps of Sculley's algorithm 1, one point at a time in float64."""
    x, key = X[:60], jax.random.key(3)
    found = mini_batch(
        jnp.asarray(x), jnp.asarray(x[:4]), key=key, iterations=6, batch_size=16, block=8
    )
    c, v = x[:4].astype(np.float64), np.zeros(4)
    for step in jax.random.split(key, 6):
        batch = x[np.asarray(jax.random.randint(step, (16,), 0, 60))].astype(np.float64)
        nearest = np.argmin(((batch[:, None] - c) ** 2).sum(2), axis=1)
        for point, own in zip(batch, nearest, strict=True):
            v[own] += 1
            c[own] += (point - c[own]) / v[own]
    np.testing.assert_allclose(found.prototypes, c, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.inertia, f64_inertia(x, c, found.labels), rtol=1e-4)
    assert float(found.inertia) < f64_inertia(
        x, x[:4], assign(jnp.asarray(x), jnp.asarray(x[:4])).labels
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clusters": 11}, "between 1 and the 10 points, got 11"),
        ({"num_clusters": 0}, "got 0"),
        ({"start": "k-means+"}, "did you mean 'k-means\\+\\+'"),
        ({"start": jnp.zeros((3, 2))}, "3 prototypes of 5 features, got shape \\(3, 2\\)"),
        ({"start": jnp.full((3, 5), jnp.nan)}, "start must be finite, got 15"),
        ({"start": "random", "key": None}, "needs a key"),
        ({"empty": "drop"}, "unknown empty 'drop'"),
        ({"metric": "cosin"}, "did you mean 'cosine'"),
        ({"support": 2}, "needs a temperature above 0"),
        ({"support": 4, "temperature": 1.0}, "between 1 and the 3 clusters, got 4"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"laplacian_weight": -0.5, "graph": ALONE}, "weight must be at least 0, got -0.5"),
        ({"laplacian_weight": 0.5}, "laplacian_weight 0.5 needs a graph, got none"),
        ({"laplacian_weight": jnp.float32(0.5), "temperature": 1.0}, "0.5 needs a graph"),
        ({"assignment_updates": 3}, "assignment_updates 3 needs a graph or a temperature above 0"),
        ({"assignment_updates": 0, "temperature": 1.0}, "must be at least 1, got 0"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(unchecked, options, message):
    defaults = {"num_clusters": 3, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        cluster(jnp.asarray(X[:10]), **{**defaults, **options})


def test_values_that_are_not_finite_are_counted():
    x = jnp.asarray(X[:10]).at[2, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        cluster(x, num_clusters=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        mini_batch(x, jnp.asarray(X[:2]), key=jax.random.key(0))


MESH = """
import json
import jax, jax.numpy as jnp, numpy as np
from rml.fewshot.clustering import cluster, mini_batch
from rml.ops.neighbors import knn_graph, mutual, with_self_loops
from rml.training.mesh import make_mesh

assert len(jax.devices()) == 8
mesh = make_mesh({"data": 4, "fsdp": 2})
centres = 4 * jax.random.normal(jax.random.key(0), (6, 3))
owner = jax.random.randint(jax.random.key(1), (160,), 0, 6)
x = centres[owner] + jax.random.normal(jax.random.key(2), (160, 3))
graph = with_self_loops(mutual(knn_graph(x, k=4)))
far = x[:6].at[2:4].set(500.0)
key = jax.random.key(3)
cases = {
    "given": {"start": x[:6]},
    "empty": {"start": far},
    "k-means++": {"key": key},
    "k-means||": {"key": key, "start": "k-means||"},
    "soft": {"start": x[:6], "graph": graph, "laplacian_weight": 0.5, "temperature": 0.3,
             "support": 3},
    "cosine": {"start": x[:6], "metric": "cosine"},
}
result = {}
for name, options in cases.items():
    options = {"num_clusters": 6, "block": 16, "max_iterations": 8, **options}
    one, many = cluster(x, **options), cluster(x, mesh=mesh, **options)
    result[name] = [
        int(jnp.sum(one.labels != jax.device_get(many.labels))),
        float(np.max(np.abs(one.prototypes - jax.device_get(many.prototypes)))),
        float(np.nanmax(np.abs(np.asarray(one.energies) / np.asarray(many.energies) - 1))),
        int(one.iterations) - int(many.iterations),
        len(set(np.asarray(many.labels).tolist())),
    ]
    assert len(many.labels.sharding.device_set) == 8
try:
    cluster(x[:150], num_clusters=6, key=key, mesh=mesh)
except ValueError as error:
    result["uneven"] = str(error)
found = mini_batch(x, x[:6], key=key, iterations=5, batch_size=16, mesh=mesh)
c, v = np.asarray(x[:6], np.float64), np.zeros(6)
for step in jax.random.split(key, 5):  # each device draws two of its own twenty points
    rows = [20 * i + jax.random.randint(jax.random.fold_in(step, i), (2,), 0, 20) for i in range(8)]
    batch = np.asarray(x)[np.concatenate(rows)].astype(np.float64)
    nearest = np.argmin(((batch[:, None] - c) ** 2).sum(2), axis=1)
    for point, own in zip(batch, nearest):
        v[own] += 1
        c[own] += (point - c[own]) / v[own]
result["mini_batch"] = float(np.max(np.abs(c - jax.device_get(found.prototypes))))
try:
    mini_batch(x, x[:6], key=key, batch_size=12, mesh=mesh)
except ValueError as error:
    result["uneven_batch"] = str(error)
print(json.dumps(result))
"""


@pytest.mark.slow
def test_eight_devices_equal_one(forked):
    found = forked(MESH, devices=8)
    assert "(150, 3)" in found.pop("uneven")
    assert "(12,)" in found.pop("uneven_batch")
    assert found.pop("mini_batch") < 1e-4
    assert len(found) == 6
    for name, (labels, prototypes, energies, iterations, used) in found.items():
        assert labels == 0, name
        assert prototypes < 1e-4, name
        assert energies < 1e-5, name
        assert iterations == 0, name
        assert used == 6, name
