"""Retrieval among classes, and how far test examples lie from others, against loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import class_retrieval, utilization

RNG = np.random.default_rng(0)
LABELS = np.array([3, 0, 0, 1, 3, 0, 1, 3, 3, 5])


def test_scores_match_loops_over_ranked_others():
    z = RNG.standard_normal((10, 3))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = unit @ unit.T
    expected = {name: [] for name in ("recall@1", "recall@4", "r_precision", "map@r")}
    for a in range(9):  # the last is alone in its class
        ranked = [i for i in np.argsort(-s[a]) if i != a]
        hits = [LABELS[i] == LABELS[a] for i in ranked]
        others = sum(hits)
        expected["recall@1"].append(float(any(hits[:1])))
        expected["recall@4"].append(float(any(hits[:4])))
        expected["r_precision"].append(sum(hits[:others]) / others)
        expected["map@r"].append(
            sum(sum(hits[: i + 1]) / (i + 1) for i in range(others) if hits[i]) / others
        )
    found = class_retrieval(jnp.asarray(z, jnp.float32), jnp.asarray(LABELS), cutoffs=(1, 4))
    assert list(found) == ["recall@1", "recall@4", "r_precision", "map@r"]
    assert 0 < np.mean(expected["map@r"]) < np.mean(expected["r_precision"])
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_classes_apart_are_retrieved_whole():
    z = np.eye(6)[LABELS] + 0.01 * RNG.standard_normal((10, 6))
    found = class_retrieval(jnp.asarray(z, jnp.float32), jnp.asarray(LABELS))
    assert all(float(jnp.min(values)) == 1 for values in found.values())


def test_features_that_are_no_numbers_find_nothing():
    found = class_retrieval(jnp.full((4, 2), jnp.nan), jnp.asarray([0, 0, 1, 1]))
    assert all(float(jnp.max(values)) == 0 for values in found.values())


@pytest.mark.parametrize(
    ("labels", "cutoffs", "message"),
    [
        ([0, 1, 2], (1,), "labels are 3 classes of one example, expected two of a class"),
        ([0, 0, 1], (3,), "cutoff is 3, expected less than the 3 examples"),
        ([0, 0, 1], (0,), "cutoff is 0, expected a number at least 1"),
    ],
)
def test_what_cannot_be_searched_is_named(labels, cutoffs, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        class_retrieval(jnp.ones((3, 2)), jnp.asarray(labels), cutoffs=cutoffs)


def test_utilization_is_the_mean_squared_distance_to_the_nearest():
    queries, examples = RNG.standard_normal((6, 3)), RNG.standard_normal((9, 3))
    square = np.sum((queries[:, None] - examples) ** 2, -1)
    found = utilization(jnp.asarray(queries, jnp.float32), jnp.asarray(examples, jnp.float32))
    assert found == pytest.approx(np.mean(square.min(1)), rel=1e-5)
    fewer = utilization(jnp.asarray(queries, jnp.float32), jnp.asarray(examples[:4], jnp.float32))
    assert fewer > found
    assert utilization(jnp.asarray(queries, jnp.float32), jnp.asarray(queries, jnp.float32)) == 0
