"""Clustering scores: known values, and what they must not depend on."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import clustering_accuracy, clustering_scores, v_measure


def test_names_of_clusters_do_not_matter():
    labels = jnp.asarray([0, 0, 1, 1, 5, 5])
    scores = clustering_scores(labels, jnp.asarray([7, 7, -1, -1, 0, 0]))
    assert scores == pytest.approx({"nmi": 1, "ari": 1, "accuracy": 1})


def test_accuracy_equals_the_best_of_all_matches():
    labels = jax.random.randint(jax.random.key(0), (40,), 0, 4)
    clusters = jax.random.randint(jax.random.key(1), (40,), 0, 4)
    best = max(np.mean(np.asarray(p)[clusters] == labels) for p in permutations(range(4)))
    assert clustering_accuracy(labels, clusters) == pytest.approx(best)


@pytest.mark.parametrize(
    ("clusters", "accuracy", "nmi"),
    [
        ([0, 0, 0, 0], 0.5, 0),  # one cluster says nothing
        ([0, 1, 2, 3], 0.5, 2 / 3),  # unmatched clusters are wrong; I = log 2, H = log 2, log 4
        ([0, 1, 0, 1], 0.5, 0),  # independent
    ],
)
def test_known_values(clusters, accuracy, nmi):
    scores = clustering_scores(jnp.asarray([0, 0, 1, 1]), jnp.asarray(clusters))
    assert scores["accuracy"] == pytest.approx(accuracy)
    assert scores["nmi"] == pytest.approx(nmi, abs=1e-12)


def test_random_clusters_have_adjusted_index_near_zero():
    labels = jax.random.randint(jax.random.key(0), (5000,), 0, 5)
    clusters = jax.random.randint(jax.random.key(1), (5000,), 0, 5)
    assert abs(clustering_scores(labels, clusters)["ari"]) < 0.01


@pytest.mark.parametrize("function", [clustering_accuracy, clustering_scores, v_measure])
def test_shapes_must_agree(unchecked, function):
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        function(jnp.zeros(3, int), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"\(0,\) and \(0,\)"):
        function(jnp.zeros(0, int), jnp.zeros(0, int))


def test_v_measure_is_its_definition_by_entropies():
    labels, clusters = (
        np.asarray(jax.random.randint(jax.random.key(k), (60,), 0, 4)) for k in (4, 5)
    )
    clusters = np.where(labels == 1, 7, clusters)  # they have something in common

    def entropy(*columns):
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
        return -np.sum(counts / 60 * np.log(counts / 60))

    both, of_labels, of_clusters = entropy(labels, clusters), entropy(labels), entropy(clusters)
    h, c = 1 - (both - of_clusters) / of_labels, 1 - (both - of_labels) / of_clusters
    for beta in (1.0, 0.5):
        found = v_measure(jnp.asarray(labels), jnp.asarray(clusters), beta=beta)
        expected = (h, c, (1 + beta) * h * c / (beta * h + c))
        assert found == pytest.approx(expected, rel=1e-9)
    scores = clustering_scores(jnp.asarray(labels), jnp.asarray(clusters))
    assert v_measure(jnp.asarray(labels), jnp.asarray(clusters)).v_measure == pytest.approx(
        scores["nmi"]
    )
    one_a_row = v_measure(jnp.asarray([0, 0, 1, 1]), jnp.asarray([0, 1, 2, 3]))
    assert one_a_row == pytest.approx((1, 0.5, 2 / 3))
