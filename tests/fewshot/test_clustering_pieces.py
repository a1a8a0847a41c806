"""What surrounds a clustering: points of a mixture, the graph, the time of an iteration."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.fewshot.clustering import gaussian_mixture, iteration_seconds, neighbor_graph, timing


def test_a_mixture_has_unit_deviation_around_spread_centres():
    key = jax.random.key(0)
    x, labels = gaussian_mixture(key, number=20_000, dimension=5, components=40, spread=3.0)
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    centres = np.stack([x[labels == c].mean(0) for c in range(40)])
    assert (x - centres[labels]).std() == pytest.approx(1, abs=0.01)
    assert centres.std() == pytest.approx(3, abs=0.4)  # of 200 numbers: three deviations
    counts = np.bincount(labels, minlength=40)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def dense(graph, n):
    w = np.zeros((n, n))
    np.add.at(w, (np.arange(n)[:, None], np.asarray(graph.indices)), np.asarray(graph.weights))
    return w


def test_graphs_are_of_their_kind():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((30, 3)), jnp.float32)
    directed, mutual, semidefinite = (
        dense(neighbor_graph(x, neighbors=4, kind=kind), 30)
        for kind in ("directed", "mutual", "semidefinite")
    )
    np.testing.assert_array_equal(directed.sum(1), 4)
    np.testing.assert_array_equal(mutual, np.minimum(directed, directed.T))
    np.testing.assert_array_equal(semidefinite, mutual + np.diag(mutual.sum(1)))
    assert np.linalg.eigvalsh(semidefinite)[0] > -1e-9
    assert np.linalg.eigvalsh(mutual)[0] < -1
    assert neighbor_graph(x, neighbors=0, kind="mutual") is None
    with pytest.raises(UserError, match=r"unknown graph\.kind 'mutal'; did you mean 'mutual'"):
        neighbor_graph(x, neighbors=0, kind="mutal")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "parts"),
    # Two iterations and the last assignment, which is little where an iteration has several.
    [({"empty": "keep"}, 3), ({"temperature": 0.5}, 2)],
)
def test_an_iteration_is_a_share_of_the_fastest_run(monkeypatch, options, parts):
    x, _ = gaussian_mixture(jax.random.key(0), number=600, dimension=4, components=3, spread=0.5)
    ticks = iter([0.0, 100.0, 200.0, 209.0, 300.0, 306.0])  # compilation, 9 s, 6 s
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    seconds = iteration_seconds(
        x, start=x[:3], iterations=2, repetitions=2, num_clusters=99, tolerance=1.0, **options
    )
    assert seconds == 6.0 / parts
