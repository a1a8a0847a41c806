"""Thousands of episodes in one call: equal to one at a time, in chunks, and on eight devices."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.fewshot.episodes import class_index, sample_episodes
from rml.fewshot.evaluate import evaluate_episodes, mean_and_interval, sweep
from rml.fewshot.kmeans import soft_kmeans
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.transductive_clustering import transductive_clustering

ROOT = Path(__file__).parents[2]
SIZES = dict(episodes=37, ways=4, shots=1, queries=5)


def draw(labels, seed=0, **changes):
    return sample_episodes(jax.random.key(seed), labels, **{**SIZES, **changes})


def data(classes=8, each=12, d=16, spread=1.0):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    x = rng.standard_normal((classes, d))[labels] + spread * rng.standard_normal((len(labels), d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return jnp.asarray(x, jnp.float32), jnp.asarray(labels)


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [None, 2.0])
def test_equals_a_loop_over_sampled_episodes(concentration):
    x, y = data()
    tasks = draw(y, seed=3, concentration=concentration)
    found = evaluate_episodes(simple_shot, x, tasks, ways=4)
    classify = jax.jit(partial(simple_shot, num_classes=4))
    expected = [
        np.mean(np.argmax(classify(x[s], sy, x[q]), 1) == np.asarray(qy))
        for s, sy, q, qy in zip(*tasks, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert 0.3 < np.mean(expected) < 0.95


@pytest.mark.slow
def test_chunks_do_not_matter():
    x, y = data()
    all_, some, one = (
        evaluate_episodes(soft_kmeans, x, draw(class_index(y)), ways=4, memory_bytes=m)
        for m in (2**30, 60_000, 1)
    )
    np.testing.assert_allclose(some, all_, atol=1e-6)
    np.testing.assert_allclose(one, all_, atol=1e-6)


@pytest.mark.slow
def test_memory_follows_the_budget():
    from rml.fewshot.evaluate import _accuracies, _Fixed

    x, y = data(d=256)
    tasks = draw(y, episodes=512)

    def used(chunk):
        lowered = _accuracies.lower(
            (), x, tasks, method_of=_Fixed(simple_shot), ways=4, chunk=chunk
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert used(16) < used(256) / 8


@pytest.mark.slow
def test_a_sweep_is_a_loop_over_the_same_episodes():
    x, y = data()
    weights = jnp.asarray([0.0, 0.02, 0.1])

    def method_of(weight):
        return partial(transductive_clustering, laplacian_weight=weight, neighbors=3)

    tasks = draw(y)
    found = jnp.mean(sweep(method_of, weights, x, tasks, ways=4), axis=0)

    @jax.jit
    def correct(weight, s, sy, q, qy):
        p = method_of(weight)(x[s], sy, x[q], num_classes=4)
        return jnp.mean(jnp.argmax(p, axis=1) == qy)

    expected = [np.mean([correct(w, *task) for task in zip(*tasks, strict=True)]) for w in weights]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(np.asarray(found).tolist())) > 1


@pytest.mark.slow
def test_a_sweep_over_several_hyperparameters_at_once():
    x, y = data()
    grid = dict(weight=jnp.asarray([0.0, 0.05]), temperature=jnp.asarray([0.1, 0.3]))

    def method_of(g):
        return partial(
            transductive_clustering, laplacian_weight=g["weight"], temperature=g["temperature"]
        )

    found = sweep(method_of, grid, x, draw(y), ways=4)
    soft = evaluate_episodes(soft_kmeans, x, draw(y), ways=4)
    assert found.shape == (37, 2)
    np.testing.assert_allclose(found[:, 0], soft, atol=1e-6)


MESH = """
import json, sys
sys.path.insert(0, "tests/fewshot")
import jax, numpy as np
from test_evaluate import data, draw, soft_kmeans, evaluate_episodes, sweep, partial
from rml.training import make_mesh
import jax.numpy as jnp
x, y = data()
run = lambda mesh: np.asarray(
    evaluate_episodes(soft_kmeans, x, draw(y), ways=4, mesh=mesh)).tolist()
grid = lambda mesh: np.asarray(sweep(
    lambda t: partial(soft_kmeans, temperature=t), jnp.asarray([0.1, 1.0]), x, draw(y), ways=4,
    mesh=mesh)).tolist()
eight = make_mesh({"data": 4, "fsdp": 2})
print(json.dumps([run(None), run(eight), grid(None), grid(eight), jax.device_count()]))
"""


@pytest.mark.slow
def test_eight_devices_equal_one(forked):
    one, eight, grid_one, grid_eight, devices = forked(MESH, devices=8)
    assert devices == 8
    assert len(eight) == 37  # not a multiple of eight
    np.testing.assert_allclose(eight, one, atol=1e-6)
    np.testing.assert_allclose(grid_eight, grid_one, atol=1e-6)


@pytest.mark.slow
def test_the_interval_covers_the_mean_as_often_as_it_says():
    values = np.asarray([0.2, 0.4, 0.9], np.float32)
    mean, half = mean_and_interval(jnp.asarray(values))
    wide = values.astype(np.float64)
    assert mean == pytest.approx(wide.mean())
    assert half == pytest.approx(1.96 * np.sqrt(np.sum((wide - wide.mean()) ** 2) / 2 / 3))
    samples = np.random.default_rng(0).binomial(75, 0.6, (500, 400)) / 75
    covered = [abs(m - 0.6) <= h for m, h in map(mean_and_interval, jnp.asarray(samples))]
    assert 0.92 < np.mean(covered) < 0.975
    assert mean_and_interval(jnp.asarray([0.5])) == (0.5, float("inf"))


@pytest.mark.slow
def test_bad_input_is_named(unchecked):
    with pytest.raises(ValueError, match=r"at least one example, got accuracies \(0,\) as \[n\]"):
        mean_and_interval(np.zeros(0))
    x, y = data()
    tasks = draw(y)
    with pytest.raises(ValueError, match="features must be finite, got 1"):
        evaluate_episodes(simple_shot, x.at[0, 0].set(jnp.nan), tasks, ways=4)
    with pytest.raises(UserError, match="episodes name row"):
        evaluate_episodes(simple_shot, x[:12], tasks, ways=4)
    with pytest.raises(UserError, match="ways is 5, but the episodes have 4 classes"):
        evaluate_episodes(simple_shot, x, tasks, ways=5)
    with pytest.raises(UserError, match="one a row, got support of shape"):
        evaluate_episodes(simple_shot, x, jax.tree.map(lambda part: part[0], tasks), ways=4)


@pytest.mark.parametrize(
    ("part", "number", "message"),
    [
        ("support", -1, "episodes name row -1, expected 0 to"),
        ("query", -3, "episodes name row -3, expected 0 to"),
        ("support_labels", -1, "episodes name class -1, expected 0 to 3"),
        ("query_labels", -1, "episodes name class -1, expected 0 to 3"),
        ("query_labels", 4, "episodes name class 4, expected 0 to 3"),
    ],
)
def test_rows_and_classes_that_there_are_not_are_named(part, number, message):
    x, y = data()
    tasks = draw(y)
    wrong = tasks._replace(**{part: getattr(tasks, part).at[0, 1].set(number)})
    with pytest.raises(UserError, match=message):
        evaluate_episodes(simple_shot, x, wrong, ways=4)


def test_scores_that_are_no_numbers_have_no_accuracy():
    """Class 0 would be the largest of them."""
    x, y = data()
    tasks = draw(y)

    def method(support, labels, query, *, num_classes, center, scale):
        scores = jnp.ones((len(query), num_classes)).at[:, 0].set(scale)
        return jnp.where(support[0, 0] > 0, scores, scores.at[-1, -1].set(jnp.inf))

    broken = int(jnp.sum(x[tasks.support[:, 0], 0] <= 0))
    assert 0 < broken < 37
    given = partial(method, center=jnp.zeros(16), scale=2.5)
    said = rf"scores of method\(scale=2.5\) are not finite in {broken} of 37 episodes"
    with pytest.raises(UserError, match=said):
        evaluate_episodes(given, x, tasks, ways=4)
    found = sweep(
        lambda scale: partial(given, scale=scale), jnp.array([2.5, jnp.nan]), x, tasks, ways=4
    )
    np.testing.assert_allclose(found[:, 0], jnp.where(x[tasks.support[:, 0], 0] > 0, 0.25, jnp.nan))
    assert jnp.isnan(found[:, 1]).all()
