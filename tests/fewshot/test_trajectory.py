"""The course of the regularised model: its solution, its energies, an episode in the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.fewshot import (
    Episodes,
    largest_increase,
    picture,
    sample_episodes,
    simple_shot,
    solve_episode,
    trajectories,
    transductive_clustering,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {}, {"graph": "directed", "shift": False, "neighbors": 2},
        {"distance": "cosine", "steps": 3}, {"prototype": "mode", "steps": 3},
        {"prototype": "mode", "distance": "cosine", "shift": False, "steps": 3},
    ],
)  # fmt: skip
def test_an_episode_is_solved_as_by_the_method(double, episode, options):
    support, labels, query = (jnp.asarray(np.asarray(part, float)) for part in episode(0)[:3])
    labels = labels.astype(int)
    # Rows of unequal lengths, of which cosines take the directions before their mean.
    support = support * jnp.linspace(1, 3, len(support))[:, None]
    given = {"num_classes": 3, "laplacian_weight": 0.1, **options}
    solution = jax.jit(lambda *e: solve_episode(*e, **given))(support, labels, query)
    p = jax.jit(lambda *e: transductive_clustering(*e, **given))(support, labels, query)
    np.testing.assert_allclose(solution.assignments[len(support) :], p, atol=1e-9)


def drawn(episodes=4):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    x = rng.standard_normal((4, 8))[labels] + 0.7 * rng.standard_normal((48, 8))
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    return x, sample_episodes(
        jax.random.key(0), labels, episodes=episodes, ways=3, shots=1, queries=5
    )


@pytest.mark.slow
def test_trajectories_are_the_energies_of_each_episode_for_each_weight():
    x, tasks = drawn()
    courses = trajectories(x, tasks, (0.2, 0.0, 0.2), ways=3, temperature=0.2, steps=10)
    assert list(courses) == [0.0, 0.2]
    for weight, energies in courses.items():
        assert energies.shape == (4, 11)
        assert largest_increase(energies) <= 1e-5
        alone = solve_episode(
            x[tasks.support[1]], tasks.support_labels[1], x[tasks.query[1]], num_classes=3,
            laplacian_weight=weight, temperature=0.2, steps=10,
        )  # fmt: skip
        np.testing.assert_allclose(energies[1], alone.energies, rtol=1e-4)
    assert np.all(courses[0.2] < courses[0.0])  # the Laplacian term rewards agreement


def test_an_increase_is_seen():
    assert largest_increase(np.array([[4.0, 2.0, 2.0], [-2.0, -1.0, -1.0]])) == 0.5
    assert largest_increase(np.array([[4.0, 2.0, 2.0], [-2.0, -2.5, -2.5]])) == -0.2
    assert largest_increase(np.array([[8.0, -1e-9, 1e-9]])) == 2e-9 / 8
    assert largest_increase(np.array([[4.0, 4.0]])) == 0.0
    assert largest_increase(np.array([[4.0]])) == 0.0
    assert largest_increase(np.array([[4.0, 5.0], [0.0, 0.0]])) == 0.2


@pytest.mark.slow
def test_a_picture_lays_the_first_episode_on_its_principal_plane():
    x, tasks = drawn()
    shown = picture(x, tasks, ways=3, laplacian_weight=0.1)
    first = Episodes(*(np.asarray(part[0]) for part in tasks))
    rows = np.asarray(x, np.float64)[np.concatenate([first.support, first.query])]
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    np.testing.assert_allclose(np.cov(shown.xy.T), np.diag(variances[:2]), atol=1e-6)
    assert shown.support == 3
    np.testing.assert_array_equal(shown.labels[:3], first.support_labels)
    np.testing.assert_array_equal(shown.labels[3:], first.query_labels)
    given = x[first.support], jnp.asarray(first.support_labels), x[first.query]
    for found, p in (
        (shown.before, simple_shot(*given, num_classes=3)),
        (shown.after, transductive_clustering(*given, num_classes=3, laplacian_weight=0.1)),
    ):
        np.testing.assert_array_equal(found[:3], first.support_labels)
        np.testing.assert_array_equal(found[3:], np.argmax(p, axis=1))
